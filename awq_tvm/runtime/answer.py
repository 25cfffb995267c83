"""One answer as it grows: what becomes of the logits after each token, whoever runs the model.

`Engine` feeds one of these for each answer, the server's scheduler many at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from awq_tvm.runtime.detokenizer import Decoder, Detokenizer, StopStrings
from awq_tvm.runtime.logit_row import DeviceRow
from awq_tvm.runtime.sampler import Sampler, SamplingOptions, log_chances

FinishReason = Literal["stop", "length"]


class Constraint(Protocol):
    """What an answer must look like, token by token."""

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """Logits float32 [V] with -inf wherever a token cannot come next; the argument is left as it is."""
        ...

    def accept(self, token: int) -> bool:
        """Take the token that was drawn; return whether the answer is complete with it."""
        ...


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A token of an answer.

    Attributes:
        id: of the token.
        offset: characters of the answer before its text, as far as they were certain when it came.
        logprob: natural logarithm of its probability by the model, before options narrowed it; None if not asked.
        top: ids and log-probabilities of the most likely tokens, likeliest first, as many as asked for.
    """

    id: int
    offset: int = 0
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class AnswerWriter:
    """Draws the tokens of one answer, turns them into text and knows where it ends.

    Args:
        tokenizer: of the model.
        options: how to draw and where to end.
        prompt: tokens before the answer.
        ends: tokens that end it.
        limit: most tokens to draw, at least 1.
        constraint: what its text must look like; None for anything.

    Attributes:
        drawn: every token so far, one that only ended the answer included.
        finish_reason: None while it goes on; "stop" at an end token, a stop string or where the constraint is
            met; else "length".
    """

    def __init__(
        self,
        tokenizer: Decoder,
        options: SamplingOptions,
        prompt: Sequence[int],
        *,
        ends: Collection[int],
        limit: int,
        constraint: Constraint | None = None,
    ) -> None:
        self.options, self.limit = options, limit
        self.drawn: list[DrawnToken] = []
        self.finish_reason: FinishReason | None = None
        self._ends, self._constraint = ends, constraint
        self._sampler = Sampler(options, prompt)
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(options.stop)
        self._shown: list[str] = []
        self._length = 0  # characters of text that are certain, those that a stop string holds back included
        self._ended = False

    def take(self, row: np.ndarray | DeviceRow) -> str:
        """Draw the next token.

        Args:
            row: logits float32 [V] after the last token; left as they are. Those on a device are read only where
                their candidates do not tell.

        Returns:
            the text that is now certain, maybe none.

        Raises:
            BundleError: a logit is NaN, or none is finite.
        """
        drawn = self._drawn_of_candidates(row) if isinstance(row, DeviceRow) else None
        if drawn is None:
            drawn = self._drawn_of_all(row.whole() if isinstance(row, DeviceRow) else row)
        token = drawn.id
        self.drawn.append(drawn)
        self._ended = token in self._ends
        complete = self._constraint is not None and self._constraint.accept(token)
        certain = self._detokenizer.finish() if self._ended else self._detokenizer.push(token)
        self._length += len(certain)
        piece, stopped = self._stops.push(certain)
        if self._ended or stopped or complete:
            self.finish_reason = "stop"
        elif len(self.drawn) >= self.limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and not stopped:
            piece += self._rest()
        if piece:
            self._shown.append(piece)
        return piece

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the answer, without one that only ended it."""
        drawn = self.drawn[:-1] if self._ended else self.drawn
        return tuple(token.id for token in drawn)

    @property
    def text(self) -> str:
        """The text so far, cut before a stop string."""
        return "".join(self._shown)

    def _rest(self) -> str:
        """What was held back, now that no token follows."""
        rest, stopped = self._stops.push("" if self._ended else self._detokenizer.finish())
        if stopped:
            self.finish_reason = "stop"
            return rest
        return rest + self._stops.finish()

    def _drawn_of_all(self, logits: np.ndarray) -> DrawnToken:
        token = self._sampler.sample(logits if self._constraint is None else self._constraint.mask(logits))
        if self.options.logprobs is None:
            return DrawnToken(token, self._length)
        chances, likeliest = log_chances(logits, self.options.logprobs)
        top = tuple((int(other), float(chances[other])) for other in likeliest)
        return DrawnToken(token, self._length, float(chances[token]), top)

    def _drawn_of_candidates(self, row: DeviceRow) -> DrawnToken | None:
        """None where they do not tell; what a constraint leaves of them is not looked for."""
        found = row.candidates
        token = self._sampler.sample_from(found) if self._constraint is None else None
        if token is None or self.options.logprobs is None:
            return None if token is None else DrawnToken(token, self._length)
        chances, likeliest = found.log_chances(self.options.logprobs)
        top = tuple(zip(likeliest.tolist(), chances.tolist(), strict=False))
        return DrawnToken(token, self._length, float(chances[found.ids == token][0]), top)
