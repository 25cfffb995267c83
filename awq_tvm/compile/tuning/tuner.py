"""Tune many linears within a budget; each record is on the disk as soon as it is found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import geometric_mean
from typing import TYPE_CHECKING

import numpy as np

from awq_tvm.compile.tuning.measurement import Machine, Measurer
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import KernelKey, Measured, TunedRecord, name_of_rows
from awq_tvm.compile.tuning.search import Search, search_part
from awq_tvm.errors import TargetError
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.rule import Part
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from awq_tvm.compile.tuning.limits import Limits

DEFAULT_TRIALS = 16


@dataclass
class TuneReport:
    """What tuning did.

    Attributes:
        records: that were found.
        known: parts that had a record before and were not measured.
        failed: titles of parts whose default could not be measured, and why.
        left: parts that the budget did not reach.
        candidates: that were measured.
        refused: candidates that hung, died, or computed wrong numbers, with the reason.
        interrupted: whether ^C ended it.
        lost: why no more could be measured, where the machine was lost.
        seconds: that it took.
    """

    records: list[TunedRecord] = field(default_factory=list)
    known: int = 0
    failed: list[str] = field(default_factory=list)
    left: int = 0
    candidates: int = 0
    refused: list[str] = field(default_factory=list)
    interrupted: bool = False
    lost: TargetError | None = None
    seconds: float = 0.0


def tune(
    problems: Sequence[Problem],
    measurer: Measurer,
    save: Callable[[TunedRecord], None],
    *,
    known: Collection[KernelKey] = (),
    trials: int = DEFAULT_TRIALS,
    seconds: float | None = None,
    limits: Callable[[], Limits | None] = lambda: None,
    progress: ProgressCallback = ignore_progress,
) -> TuneReport:
    """Search every part of every problem that has no record yet.

    Args:
        problems: the most important first.
        measurer: the back end.
        save: called with each record at once.
        known: parts with these keys are left out.
        trials: candidates for each part at most.
        seconds: after so many no new candidate is tried; None for no limit.
        limits: measures those of the machine, for the roof; called once, when there is something to measure.
        progress: told of each candidate.
    """
    start = time.monotonic()
    report = TuneReport()
    wanted = [(problem, part) for problem in problems for part in problem.parts]
    todo = [(problem, part) for problem, part in wanted if problem.key(part) not in known]
    report.known = len(wanted) - len(todo)

    def may_go_on() -> bool:
        return seconds is None or time.monotonic() - start < seconds

    counts = [min(trials, len(part.configs)) for _, part in todo]
    try:
        known_limits = limits() if todo and may_go_on() else None
        for number, (problem, part) in enumerate(todo):
            if not may_go_on():
                report.left = len(todo) - number
                break
            roof = None if known_limits is None else roof_microseconds(problem, part, known_limits)

            def say(search: Search, before: int = sum(counts[:number]), roof: float | None = roof) -> None:
                words = _standing(search, roof)
                progress(ProgressEvent("tune", before + search.trials, sum(counts), words))

            search = search_part(
                problem, part, measurer, trials=counts[number], may_go_on=may_go_on, on_trial=say
            )
            take(search, measurer, roof, save, report)
    except (KeyboardInterrupt, TargetError) as error:
        report.interrupted = isinstance(error, KeyboardInterrupt)
        report.lost = error if isinstance(error, TargetError) else None
        report.left = len(todo) - len(report.records) - len(report.failed)
    report.seconds = time.monotonic() - start
    return report


def roof_microseconds(problem: Problem, part: Part, limits: Limits) -> float:
    """What reading the weights from memory, or else the multiplications, take at the least."""
    spec = problem.spec
    if isinstance(spec, AttentionSpec):
        rows = part.timed_rows
        reading = spec.bytes_read / limits.read["memory"] / 1e3
        flops = [spec.operations(m) / limits.fma / 1e3 if limits.fma else 0.0 for m in rows]
        return geometric_mean([max(reading, work) for work in flops])
    if isinstance(spec, MatmulSpec):
        arrays = problem.family.layout(spec, problem.target).arrays(spec)
        weight_bytes = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)
    else:
        weight_bytes = spec.in_features * spec.out_features * (4 if spec.weight_dtype == "float32" else 2)
    digits = getattr(problem.default, "planes", None)
    peak = limits.fma if digits is None else limits.dot / digits
    reading = float(weight_bytes) / limits.read["memory"] / 1e3
    products = 2.0 * spec.in_features * spec.out_features / peak / 1e3 if peak else 0.0
    return geometric_mean([max(reading, rows * products) for rows in part.timed_rows])


def title(problem: Problem, part: Part) -> str:
    """A part in words."""
    return f"{problem.title}, M {name_of_rows(part.first_rows, part.last_rows)}"


def _standing(search: Search, roof: float | None) -> str:
    words = title(search.problem, search.part)
    if search.default is None:
        return words
    best = search.default * min((1.0, *search.ratios.values()))
    words += f": best {best:.1f} us, default {search.default:.1f}"
    return words if roof is None else f"{words}, {100 * roof / best:.0f}% of the roof"


def take(
    search: Search,
    machine: Machine,
    roof: float | None,
    save: Callable[[TunedRecord], None],
    report: TuneReport,
    at: str | None = None,
    tvm: str | None = None,
) -> None:
    """Keep what a search found.

    Args:
        search: that has ended.
        machine: that measured.
        roof: microseconds that the hardware would allow, if known.
        save: is given the record.
        report: is told.
        at: when it was measured, as records say it; None for now.
        tvm: version that compiled the candidates; None for this one.
    """
    words = title(search.problem, search.part)
    report.candidates += search.trials
    report.refused += [
        f"{words}, {search.part.configs[place]}: {failure.kind}, {failure.why}"
        for place, failure in search.failed.items()
    ]
    if search.times is None or search.default_times is None:
        why = search.failed.get(0)
        report.failed.append(
            f"{words}: {why.kind if why else 'slow'}, {why.why if why else 'no time was left'}"
        )
        return
    record = TunedRecord(
        key=search.problem.key(search.part),
        config=search.config(),
        microseconds=search.times,
        default_microseconds=search.default_times,
        roof_microseconds=roof,
        measured=Measured(
            at=at or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            by=machine.name,
            machine=machine.machine,
            threads=machine.threads,
            rows=search.part.timed_rows,
            trials=search.trials,
            load=None if (load := machine.load()) is None else round(load, 2),
            tvm=tvm or version("apache-tvm"),
        ),
    )
    save(record)
    report.records.append(record)
