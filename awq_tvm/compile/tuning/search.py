"""Search one part of a problem: the likely candidates first, then the neighbours of the best.

What is looked for is the shortest time with weights from memory, which is where a model's weights are when their turn
comes. Candidates are timed a few at once, in turns with the default, and only the ratio to the default counts: a
machine with other work on it is faster at one moment than at the next. The best few meet the default once more, for
longer, and that comparison decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import geometric_mean
from typing import Any

from awq_tvm.compile.tuning.measurement import Failed, Measurer, Timed, Trial
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import Times
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.rule import Part

AT_ONCE = 4
"""Candidates that are timed beside the default."""

LIKELY_FIRST = 6
"""Candidates, the default among them, that are tried before the search looks around the best of them."""

FINALISTS = 3
GAIN_THAT_COUNTS = 0.02
"""A candidate that is faster than the default by less may be so by chance."""

SECONDS, SECONDS_AT_LAST = 0.2, 0.5
"""Of timing, for each candidate."""

Fields = dict[str, Any]


@dataclass
class Search:
    """What one search found.

    Attributes:
        problem: the linear.
        part: the range of M.
        default: cold microseconds of the default, when it was last timed.
        ratios: cold time by that of the default, for candidates by their place in ``part.configs``.
        failed: what went wrong with others.
        chosen: place of the winner.
        times: of the winner, from the last comparison; None if not even the default could be measured.
        default_times: of the default, likewise.
    """

    problem: Problem
    part: Part
    default: float | None = None
    ratios: dict[int, float] = field(default_factory=dict)
    failed: dict[int, Failed] = field(default_factory=dict)
    chosen: int = 0
    times: Times | None = None
    default_times: Times | None = None

    @property
    def trials(self) -> int:
        """Candidates that were tried, the default among them."""
        return len({0, *self.ratios, *self.failed})

    def in_order(self) -> list[int]:
        """Places of the candidates that work, the fastest first."""
        return sorted(self.ratios, key=lambda place: self.ratios[place])

    def config(self) -> Fields:
        """The winner's fields."""
        return to_fields(self.part.configs[self.chosen], self.part.fields)


def search_part(
    problem: Problem,
    part: Part,
    measurer: Measurer,
    *,
    trials: int,
    may_go_on: Callable[[], bool] = lambda: True,
    on_trial: Callable[[Search], None] = lambda search: None,
) -> Search:
    """Measure up to ``trials`` candidates, the default among them, and choose.

    Args:
        problem: the linear.
        part: the range of M.
        measurer: the back end.
        trials: at least 1.
        may_go_on: asked before each trial; when it says no, what was found is compared and counts.
        on_trial: told after each.
    """
    search = Search(problem, part)
    places = likely_places(search)
    while search.trials < trials and may_go_on():
        batch = tuple(islice(places, min(AT_ONCE, trials - search.trials)))
        if not batch:
            break
        _measure(search, measurer, batch)
        if 0 in search.failed:
            return search
        on_trial(search)
    _compare(search, measurer)
    return search


def _measure(search: Search, measurer: Measurer, places: tuple[int, ...]) -> None:
    """Time some candidates beside the default, or, where one of them does not survive, each by itself."""
    outcome = measurer.measure(_trial(search, (0, *places), SECONDS))
    if isinstance(outcome, Timed):
        take_times(search, places, outcome)
    elif len(places) == 1:
        search.failed[places[0]] = outcome
    else:
        alone = measurer.measure(_trial(search, (0,), SECONDS))
        if isinstance(alone, Failed):
            search.failed[0] = alone
            return
        for place in places:
            _measure(search, measurer, (place,))


def take_times(search: Search, places: Sequence[int], timed: Timed) -> None:
    """Note how fast some candidates are beside the default, which comes first in the times."""
    search.default = geometric_mean(timed.cold[0])
    for place, cold in zip(places, timed.cold[1:], strict=True):
        search.ratios[place] = geometric_mean(cold) / search.default


def _trial(search: Search, places: tuple[int, ...], seconds: float) -> Trial:
    part = search.part
    configs = tuple(to_fields(part.configs[place], part.fields) for place in places)
    return Trial(search.problem, configs, part.timed_rows, part.checked_rows, seconds)


def likely_places(search: Search) -> Iterator[int]:
    """What to try next, by places in ``part.configs``: likely ones, and then around the best so far."""
    part = search.part
    flat = [leaves(to_fields(config, part.fields)) for config in part.configs]
    groups: dict[tuple[Any, ...], int] = {}
    for place, found in enumerate(flat):
        groups.setdefault(tuple(v for name, v in found.items() if name not in part.refined), place)
    tried = {0}
    while len(tried) < len(part.configs):
        likely = next((place for place in groups.values() if place not in tried), None)
        near = _neighbour(search, flat, tried) if len(tried) > LIKELY_FIRST or likely is None else None
        any_other = next(place for place in range(len(part.configs)) if place not in tried)
        chosen = next(place for place in (near, likely, any_other) if place is not None)
        tried.add(chosen)
        yield chosen


def _neighbour(search: Search, flat: list[dict[str, Any]], tried: set[int]) -> int | None:
    """The likeliest untried candidate that differs in one field from the best, or else from the second best.

    The default may be the best: where the estimate errs, what is faster lies beside it, and not beside the likely.
    """
    known = {0: 1.0, **search.ratios}
    for best in sorted(known, key=lambda place: known[place])[:2]:
        for place, found in enumerate(flat):
            if place not in tried and sum(found[name] != flat[best][name] for name in found) == 1:
                return place
    return None


def leaves(fields: Fields) -> dict[str, Any]:
    """The fields, those of nested configurations in their place."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat.update(leaves(value) if isinstance(value, dict) else {name: value})
    return flat


def _compare(search: Search, measurer: Measurer) -> None:
    """Measure the default and the best few once more, in turns."""
    finalists = (0, *search.in_order()[:FINALISTS])
    outcome = measurer.measure(_trial(search, finalists, SECONDS_AT_LAST))
    if isinstance(outcome, Failed) and len(finalists) > 1:
        finalists = (0,)
        outcome = measurer.measure(_trial(search, finalists, SECONDS_AT_LAST))
    if isinstance(outcome, Failed):
        search.failed[0] = outcome
        return
    decide(search, finalists, outcome)


def decide(search: Search, finalists: Sequence[int], timed: Timed) -> None:
    """Choose: who wins must be faster cold, and at no M slower, nor hot.

    Args:
        search: to note the choice in.
        finalists: places of the default and of the best few.
        timed: each of them.
    """
    times = [
        Times(cold=geometric_mean(cold), hot=geometric_mean(hot))
        for cold, hot in zip(timed.cold, timed.hot, strict=True)
    ]
    better = [
        i
        for i, found in enumerate(times)
        if found.cold <= (1 - GAIN_THAT_COUNTS) * times[0].cold
        and _never_slower(timed.cold[i], timed.cold[0])
        and _never_slower(timed.hot[i], timed.hot[0])
    ]
    winner = min(better, key=lambda i: times[i].cold, default=0)
    search.chosen, search.times, search.default_times = finalists[winner], times[winner], times[0]


def _never_slower(times: Sequence[float], default: Sequence[float]) -> bool:
    """At any M, by more than chance."""
    return all(mine <= (1 + GAIN_THAT_COUNTS) * its for mine, its in zip(times, default, strict=True))
