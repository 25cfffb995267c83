"""Choose the next token from logits: greedy, or drawn from a distribution that options narrow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from awq_tvm.errors import BundleError, UsageError
from awq_tvm.runtime.logit_row import Candidates

MAX_NEW_TOKENS = 1 << 20
MAX_LOGPROBS = 20
_MAX_STOPS, _MAX_STOP_LENGTH = 64, 4096
_SUM_ERROR = 1e-4  # of a GPU's float32 sum of chances, with much to spare
_EDGE = 1e-9  # chances nearer than this are left to one way of computing them


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How an answer is drawn and where it ends.

    Attributes:
        max_tokens: most tokens to generate, 1 to 2^20; None: as many as the context holds, 256 at most.
        temperature: 0 takes the most likely token; above it logits are divided by it; at most 100.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens that reaches this probability, above 0 to 1.
        min_p: drop tokens less likely than this part of the most likely one, 0 to 1.
        repetition_penalty: above 1, tokens of the prompt and the answer become less likely; above 0 to 100.
        presence_penalty: taken off the logits of tokens that the answer has, -2 to 2.
        frequency_penalty: the same for every time that the answer has them, -2 to 2.
        logprobs: record the log-probability of each token, and of this many of the likeliest, 0 to 20; None: of none.
        seed: of the random generator, 0 to 2^63 - 1; None draws one.
        stop: strings that end the answer and are not part of it.

    Raises:
        UsageError: a value out of its range; the message holds the value and the range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, 1, MAX_NEW_TOKENS)
        _check("temperature", self.temperature, 0, 100)
        _check("top_k", self.top_k, 0, 1 << 24)
        _check("top_p", self.top_p, 0, 1, open_below=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, 100, open_below=True)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _check("seed", self.seed, 0, (1 << 63) - 1)
        _check("number of stop strings", len(self.stop), 0, _MAX_STOPS)
        for text in self.stop:
            _check("length of a stop string", len(text), 1, _MAX_STOP_LENGTH)


def _check(name: str, value: float, low: float, high: float, *, open_below: bool = False) -> None:
    inside = math.isfinite(value) and (low < value if open_below else low <= value) and value <= high
    if not inside:
        bound = f"above {low}" if open_below else f"from {low}"
        raise UsageError(
            f"{name} {value} cannot be meant.",
            where=name,
            why=f"found {value}, legal is {bound} to {high}",
            fix=f"give {name} a value in that range",
        )


class Sampler:
    """Draws the tokens of one answer.

    Args:
        options: how to draw.
        prompt_tokens: tokens the repetition penalty counts from the start.
    """

    def __init__(self, options: SamplingOptions, prompt_tokens: Iterable[int] = ()) -> None:
        self.options = options
        self._seen = set(prompt_tokens)
        self._counts: Counter[int] = Counter()  # of the answer's own tokens

    @cached_property
    def _generator(self) -> np.random.Generator:
        # Made at the first draw: numpy.random is imported when it is first named, and greedy answers need none.
        return np.random.Generator(np.random.PCG64(self.options.seed))

    def sample(self, logits: np.ndarray) -> int:
        """Draw one token.

        Args:
            logits: float [V]; left as it is.

        Returns:
            the token id; where two are equally likely greedy takes the lower.

        Raises:
            BundleError: a logit is NaN, or none is finite.
        """
        options = self.options
        best = int(logits.argmax())  # where any logit is NaN, the first of those
        _check_best(best, float(logits[best]))
        given = logits
        if options.repetition_penalty != 1.0 and self._seen:
            logits = logits.copy()
            seen = np.fromiter(self._seen, dtype=np.int64)
            logits[seen] = self._repeated(logits[seen])
        if self._counts and (options.presence_penalty or options.frequency_penalty):
            logits = logits.copy()
            drawn = np.fromiter(self._counts, dtype=np.int64)
            logits[drawn] -= self._taken_off(drawn)
        if options.temperature > 0:
            token = self._draw(logits)
        elif logits is given:
            token = best
        else:
            token = int(logits.argmax())
        return self._taken(token)

    def sample_from(self, found: Candidates) -> int | None:
        """Draw one token from the likeliest alone: the one that `sample` would draw from all with the same generator.

        Args:
            found: of the logits, at the temperature of the options.

        Returns:
            the token id; None where the likeliest do not tell, and nothing was drawn.

        Raises:
            BundleError: as `sample`.
        """
        options = self.options
        _check_best(int(found.ids[0]), float(found.logits[0]))
        known = self._certain(found)
        if known is None:
            return None
        logits, tokens, changed = known
        if options.temperature == 0:
            return self._taken(int(tokens[0])) if logits.size else None
        if options.top_k > 0:
            # The same numbers in the same order as of all: the same token to the last bit.
            count = options.top_k
            return self._taken(int(tokens[self._draw(logits[:count])])) if count <= logits.size else None
        if not logits.size or (options.top_p < 1.0 and changed):
            return None
        kept = _kept(logits, found, options)
        if kept is None:
            return None
        order = np.argsort(tokens[: kept.size])
        return self._taken(int(tokens[order][self._pick(kept[order])]))

    def _certain(self, found: Candidates) -> tuple[np.ndarray, np.ndarray, bool] | None:
        """What is certainly the largest behind penalties: logits, ids, and whether penalties have changed any.

        None where a penalty raises logits, as others may then be larger. Where all lower them, what is still above
        the last of the candidates is above all others.
        """
        options, logits, tokens = self.options, found.logits, found.ids
        if options.repetition_penalty != 1.0 and self._seen:
            if options.repetition_penalty < 1.0:
                return None
            repeated = np.isin(tokens, np.fromiter(self._seen, dtype=np.int64))
            logits = np.where(repeated, self._repeated(logits), logits)
        if self._counts and (options.presence_penalty or options.frequency_penalty):
            if options.presence_penalty < 0 or options.frequency_penalty < 0:
                return None
            drawn = np.isin(tokens, np.fromiter(self._counts, dtype=np.int64))
            logits = logits.copy()
            logits[drawn] -= self._taken_off(tokens[drawn])
        if logits is found.logits:
            return logits, tokens, False
        order = np.lexsort((tokens, -logits))
        order = order[logits[order] > found.logits[-1]]
        return logits[order], tokens[order], True

    def _repeated(self, values: np.ndarray) -> np.ndarray:
        """Logits of tokens that were there before."""
        penalty = self.options.repetition_penalty
        return np.where(values > 0, values / penalty, values * penalty)

    def _taken_off(self, drawn: np.ndarray) -> np.ndarray:
        """What the answer's own tokens lose, float32."""
        times = np.fromiter((self._counts[int(token)] for token in drawn), np.float32, drawn.size)
        return self.options.presence_penalty + self.options.frequency_penalty * times

    def _taken(self, token: int) -> int:
        self._seen.add(token)
        self._counts[token] += 1
        return token

    def _draw(self, logits: np.ndarray) -> int:
        options = self.options
        tokens = np.arange(logits.size)
        if 0 < options.top_k < logits.size:
            tokens = _largest(logits, options.top_k)
            logits = logits[tokens]
        scaled = logits.astype(np.float64)
        # The maximum goes first: a tiny temperature would overflow the quotient otherwise.
        with np.errstate(over="ignore"):
            chances = np.exp((scaled - scaled.max()) / options.temperature)
        chances /= chances.sum()
        if options.top_p < 1.0:
            order = _nucleus(chances, options.top_p)
            kept = chances[order]
            # What lies before each one: the most likely has nothing before it and always stays.
            kept[np.cumsum(kept) - kept >= options.top_p] = 0.0
            chances = np.zeros_like(chances)
            chances[order] = kept
        if options.min_p > 0.0:
            chances[chances < options.min_p * chances.max()] = 0.0
        return int(tokens[self._pick(chances)])

    def _pick(self, chances: np.ndarray) -> int:
        """An index, drawn by chances that need not add up to 1."""
        edges = np.cumsum(chances)
        point = self._generator.random() * edges[-1]
        # side="right" never lands on a token of no chance; rounding may carry the point to the very end.
        index = int(np.searchsorted(edges, point, side="right"))
        return int(np.flatnonzero(chances)[-1]) if index == edges.size else index


def _check_best(token: int, logit: float) -> None:
    if not math.isfinite(logit):
        raise BundleError(
            "The model computed a logit that is not a number.",
            where=f"logit {token}",
            why=f"found {logit}",
            fix="run `python -m awq_tvm verify BUNDLE`, then build the bundle again",
        )


def _kept(logits: np.ndarray, found: Candidates, options: SamplingOptions) -> np.ndarray | None:
    """Chances of the tokens that top_p and min_p leave, of logits largest first; None where they may leave others.

    They do not say where the last known token is left, and not where one is so near the edge that the rounding of
    the device's sum decides.
    """
    scaled = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        chances = np.exp((scaled - scaled[0]) / options.temperature)
    left = np.ones(logits.size, dtype=bool)
    if options.top_p < 1.0:
        parts = chances / found.tempered
        before = np.cumsum(parts) - parts
        if (np.abs(before - options.top_p) < _SUM_ERROR).any():
            return None
        left &= before < options.top_p
    if options.min_p > 0.0:
        if (np.abs(chances - options.min_p) < _EDGE * options.min_p).any():
            return None
        left &= chances > options.min_p
    return None if left[-1] else chances[left]


def log_chances(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Natural logarithms of the probabilities, float64 [V], and the ids of the `count` likeliest, likeliest first."""
    shifted = logits.astype(np.float64) - float(logits.max())
    shifted -= np.log(np.exp(shifted).sum())
    count = min(count, logits.size)
    return shifted, _largest(shifted, count) if count else np.zeros(0, np.int64)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, largest first, of equal ones the lower index first.

    A full sort of a vocabulary takes milliseconds, a partition a tenth of that.
    """
    edge = np.partition(values, values.size - count)[values.size - count]
    found = np.flatnonzero(values >= edge)
    return found[np.argsort(-values[found], kind="stable")][:count]


def _nucleus(chances: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of enough of the largest chances to reach `top_p`, largest first."""
    count = 64
    while count < chances.size:
        found = _largest(chances, count)
        if chances[found].sum() >= top_p:
            return found
        count *= 8
    return np.argsort(-chances, kind="stable")
