"""Tokens to text as they come: nothing is shown that a later token could still change."""

from __future__ import annotations

from typing import Protocol

_UNFINISHED = "\ufffd"


class Decoder(Protocol):
    """What a detokenizer needs of a tokenizer."""

    byte_tokens: frozenset[int]
    skipped_ids: frozenset[int]

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        ...


class Detokenizer:
    r"""Decodes one answer token by token; the pieces joined are the decoding of the whole.

    A window of the last tokens is decoded at each step, so a step costs the same at any length. Held back are
    a code point that is not complete, and a run of byte tokens (`<0xE2>`) until another token ends it:
    decoders turn the whole run into replacement characters where a part of it is not UTF-8.

    Args:
        tokenizer: decodes; `Tokenizer.decode` with its defaults.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._anchor = 0  # first token of the window
        self._next_anchor = 0  # where the next window starts: a token after which all text was out
        self._shown = 0  # characters of the window's text that are out

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain, maybe none."""
        self._tokens.append(token)
        # A token that decodes to nothing does not end a run of byte tokens.
        if token in self._tokenizer.byte_tokens or token in self._tokenizer.skipped_ids:
            return ""
        text = self._window()
        certain = len(text) - text.endswith(_UNFINISHED)
        if certain <= self._shown:
            return ""
        piece, self._shown = text[self._shown : certain], certain
        if certain == len(text):
            # The window keeps the tokens since the last such point: a decoder may trim the blank before the
            # first token of what it is given, so text is only ever read behind other text.
            self._anchor, self._next_anchor = self._next_anchor, len(self._tokens)
            self._shown = len(self._window())
        return piece

    def finish(self) -> str:
        """The text that was held back; the answer is over."""
        rest = self._window()[self._shown :]
        self._shown += len(rest)
        return rest

    def _window(self) -> str:
        return self._tokenizer.decode(self._tokens[self._anchor :])


class StopStrings:
    """Cuts a stream of text before the first of some strings, also where one spans several pieces.

    Args:
        stops: non-empty strings; none of them: everything passes.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Take a piece; return (text that no stop string can begin in, whether a stop string was met)."""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The text held back because a stop string might have begun in it."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
