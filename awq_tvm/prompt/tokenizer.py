"""Text to tokens and back, with user text that cannot become control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import tokenizers

from awq_tvm.errors import BundleError, UsageError

MAX_TOKENIZER_BYTES = 64 << 20
# Added tokens that a tokenizer does not call special but that templates use as such: <think>, [TOOL_CALLS].
_MARKUP = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z_/]{2,64}\]")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text. Control tokens are recognised in trusted text, a template's own, and nowhere else.

    Attributes:
        role: of the message whose text it is; None for a template's own.
    """

    text: str
    trusted: bool
    role: str | None = None


class Token(NamedTuple):
    """A token and the characters of the text that it is made from, [start, end)."""

    id: int
    start: int
    end: int


class Tokenizer:
    """The tokenizer of a bundle.

    Args:
        tokenizer_json: content of tokenizer.json.
        config: tokenizer_config.json, parsed; may be empty.

    Raises:
        BundleError: larger than 64 MiB, not JSON, or no tokenizer.

    Attributes:
        control_ids: tokens that user text never becomes.
        skipped_ids: tokens that decode to nothing.
        byte_tokens: tokens of one byte each, `<0x00>` to `<0xFF>`; empty for a byte-level vocabulary.
    """

    def __init__(self, tokenizer_json: bytes, config: Mapping[str, Any] | None = None) -> None:
        if len(tokenizer_json) > MAX_TOKENIZER_BYTES:
            raise _bad(f"{len(tokenizer_json)} bytes, at most {MAX_TOKENIZER_BYTES} are read")
        try:
            # Not parsed here too: a vocabulary takes many times its size as Python's strings.
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise _bad(f"{type(error).__name__}: {str(error)[:200]}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = [token for _, token in sorted(self._tokenizer.get_added_tokens_decoder().items())]
        self.skipped_ids = self._ids(token.content for token in added if token.special)
        for token in added:
            token.special = token.special or bool(_MARKUP.fullmatch(token.content))
        self._plain = _reading_plainly(self._tokenizer, added)
        self.config = dict(config or {})
        control = {token.content for token in added if token.special}
        self.control_ids = self._ids(control)
        # Longest first, so that a literal inside a longer one does not hide it.
        self._literals = re.compile(
            "|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)"
        )
        self.byte_tokens = self._ids(f"<0x{byte:02X}>" for byte in range(256))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. The first use lists the whole vocabulary."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a user's text.

        Args:
            text: anything; a control token spelled out in it is encoded as ordinary text.
            add_special_tokens: add what the tokenizer puts around a text, usually a first token.
        """
        return [token.id for token in self._encode_plain(text, add_special_tokens=add_special_tokens)]

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Tokens of a rendered chat template; nothing is added around them.

        Where no untrusted text touches a control token this is the encoding of the joined text.
        Otherwise the text between the trusted control tokens is encoded as plain text.
        """
        return [token.id for token in self._encode_pieces(pieces)]

    def locate_pieces(self, pieces: Sequence[Piece]) -> list[Token]:
        """What `encode_pieces` gives, and where in the joined text each token is from.

        Tokens share a character that became several. Blanks that a tokenizer does not count to any token are
        the next one's.
        """
        tokens: list[Token] = []
        reached = 0
        for token in self._encode_pieces(pieces):
            start = min(token.start, reached)
            reached = max(token.end, reached)
            tokens.append(Token(token.id, start, max(token.end, start)))
        return tokens

    def _encode_pieces(self, pieces: Sequence[Piece]) -> list[Token]:
        text = _valid("".join(piece.text for piece in pieces))
        trusted: list[bool] = []
        for piece in pieces:
            trusted.extend([piece.trusted] * len(piece.text))
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self.control_ids:
                # Some control tokens swallow blanks around them; blanks are harmless.
                start += len(text[start:end]) - len(text[start:end].lstrip())
                end = start + len(text[start:end].rstrip())
                if not all(trusted[start:end]):
                    return self._encode_apart(pieces)
        if self._reaches_control(pieces, encoding.ids):
            return self._encode_apart(pieces)
        return _tokens(encoding)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of tokens; an id outside the vocabulary decodes to nothing."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, content: str) -> int | None:
        """Id of one token by its content."""
        found: int | None = self._tokenizer.token_to_id(content)
        return found

    def special_strings(self) -> dict[str, str]:
        """What a chat template knows as bos_token, eos_token and so on; a missing one is an empty string."""
        strings = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = self.config.get(name)
            if isinstance(value, Mapping):
                value = value.get("content")
            strings[name] = value if isinstance(value, str) else ""
        return strings

    def _ids(self, contents: Iterable[str]) -> frozenset[int]:
        return frozenset(
            token for content in contents if (token := self._tokenizer.token_to_id(content)) is not None
        )

    def _reaches_control(self, pieces: Sequence[Piece], ids: Iterable[int]) -> bool:
        """Whether there are more control tokens than the trusted text alone has."""
        own = sum(
            token in self.control_ids
            for piece in pieces
            if piece.trusted
            for token in self._tokenizer.encode(piece.text, add_special_tokens=False).ids
        )
        return sum(token in self.control_ids for token in ids) > own

    def _encode_apart(self, pieces: Sequence[Piece]) -> list[Token]:
        text = "".join(piece.text for piece in pieces)
        tokens: list[Token] = []
        done = begin = 0
        for piece in pieces:
            if piece.trusted:
                encoding = self._tokenizer.encode(_valid(piece.text), add_special_tokens=False)
                for control in _tokens(encoding, begin):
                    if control.id in self.control_ids:
                        # Some tokenizers make a token of no text at all.
                        if done < control.start:
                            tokens += self._encode_plain(text[done : control.start], done)
                        tokens.append(control)
                        done = control.end
            begin += len(piece.text)
        return tokens + self._encode_plain(text[done:], done) if done < len(text) else tokens

    def _encode_plain(self, text: str, begin: int = 0, *, add_special_tokens: bool = False) -> list[Token]:
        """Tokens of a text without control tokens, the text's first character counted as number `begin`."""
        encoding = self._plain.encode(_valid(text), add_special_tokens=add_special_tokens)
        tokens = _tokens(encoding, begin)
        mask = encoding.special_tokens_mask
        # A model with control tokens in its own vocabulary may reach one without the added-token step.
        if any(token.id in self.control_ids and not mask[i] for i, token in enumerate(tokens)):
            first = next((i for i, own in enumerate(mask) if not own), len(mask))
            last = next((i for i in reversed(range(len(mask))) if not mask[i]), -1) + 1
            return [*tokens[:first], *self._encode_broken(text, begin), *tokens[last:]]
        return tokens

    def _encode_broken(self, text: str, begin: int) -> list[Token]:
        """Encode with every control token's spelling cut after its first character."""
        tokens: list[Token] = []
        done = 0
        cuts = [match.start() + 1 for match in self._literals.finditer(text)]
        for cut in [*cuts, len(text)]:
            part = self._plain.encode(_valid(text[done:cut]), add_special_tokens=False)
            tokens.extend(token for token in _tokens(part, begin + done) if token.id not in self.control_ids)
            done = cut
        return tokens


def _reading_plainly(
    tokenizer: tokenizers.Tokenizer, added: Iterable[tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    """The same tokenizer, told to read control tokens as plain text.

    Args:
        tokenizer: its vocabulary, which is large, is shared and not copied.
        added: its added tokens in the order of their ids, control tokens marked special.
    """
    plain = tokenizers.Tokenizer(tokenizer.model)
    plain.normalizer = tokenizer.normalizer
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    plain.post_processor = tokenizer.post_processor
    plain.decoder = tokenizer.decoder
    # Ids are given anew: that in the vocabulary, or the next free one. In this order each gets the one it has.
    plain.add_tokens(list(added))
    plain.encode_special_tokens = True
    return plain


def load_tokenizer(side_files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer among a bundle's files.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    if "tokenizer.json" not in side_files:
        raise _bad("the bundle holds no tokenizer.json of at most 64 MiB")
    return Tokenizer(side_files["tokenizer.json"], read_json_object(side_files, "tokenizer_config.json"))


def read_json_object(side_files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON file of the bundle; empty where the bundle has none.

    Raises:
        BundleError: it is not a JSON object.
    """
    try:
        value = json.loads(side_files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not JSON.", where=name, why=str(error)[:200], fix=_FIX) from None
    if not isinstance(value, dict):
        raise BundleError(f"{name} is not a JSON object.", where=name, why=type(value).__name__, fix=_FIX)
    return value


_FIX = "check the model's tokenizer files, then build the bundle again"


def _bad(why: str) -> BundleError:
    return BundleError("The tokenizer cannot be read.", where="tokenizer.json", why=why, fix=_FIX)


def _tokens(encoding: tokenizers.Encoding, begin: int = 0) -> list[Token]:
    return [
        Token(token, begin + start, begin + end)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            "The text is not valid Unicode.",
            where=f"character {error.start}",
            why=f"found the lone surrogate U+{ord(text[error.start]):04X}",
            fix="pass text in UTF-8",
        ) from None
    return text
