"""Times of several contenders, in turn: medians, and how far they spread. It knows no device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEAST_ROTATED_BYTES = 100_000_000


@dataclass(frozen=True)
class Contender:
    """One way to compute something.

    Attributes:
        name: in the table.
        seconds: runs it some times over and returns the seconds of one.
    """

    name: str
    seconds: Callable[[], float]


@dataclass(frozen=True)
class Timed:
    """What was measured of one contender, in seconds of one call.

    Attributes:
        name: of the contender.
        median: of the repetitions.
        low: the first quartile.
        high: the third.
    """

    name: str
    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """The middle half of the times, as a part of the median."""
        return (self.high - self.low) / self.median


def interleaved(contenders: Sequence[Contender], repetitions: int) -> list[Timed]:
    """Every contender in turn, so many times over, after once that does not count."""
    for contender in contenders:
        contender.seconds()
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(repetitions):
        for contender, samples in zip(contenders, times, strict=True):
            samples.append(contender.seconds())
    return [timed(contender.name, samples) for contender, samples in zip(contenders, times, strict=True)]


def timed(name: str, samples: Sequence[float]) -> Timed:
    """Median and quartiles; of one sample, that one."""
    if len(samples) == 1:
        return Timed(name, samples[0], samples[0], samples[0])
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timed(name, statistics.median(samples), low, high)


def copies_beyond(cache_bytes: int, weight_bytes: int, at_least: int = LEAST_ROTATED_BYTES) -> int:
    """Copies of a weight that no cache holds, one after the other: twice the cache, and ``at_least`` bytes."""
    return max(2, -(-max(2 * cache_bytes, at_least) // weight_bytes))
