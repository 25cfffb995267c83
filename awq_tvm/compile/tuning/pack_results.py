"""Results of packs: what a device measured, checked line by line, and made into records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from awq_tvm.compile.tuning.measurement import Failed, Failure, Timed
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import (
    Closed,
    KernelKey,
    Microseconds,
    Text,
    TunedRecord,
    Word,
    first_fault,
)
from awq_tvm.compile.tuning.sealed_line import unsealed
from awq_tvm.compile.tuning.search import Search, decide, take_times
from awq_tvm.compile.tuning.tuner import TuneReport, take
from awq_tvm.errors import AwqTvmError, ResourceError, TargetError, UsageError
from awq_tvm.schedules.config_fields import from_fields
from awq_tvm.targets import Target

MAX_FILE_BYTES = 256 << 20

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Place = Annotated[int, Field(ge=0, lt=1 << 20)]
Load = Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False, strict=False)]


class _Timed(Closed):
    cold: list[list[Microseconds]]
    hot: list[list[Microseconds]]


class _Failed(Closed):
    kind: Failure
    why: Text


class _Trial(Closed):
    places: list[Place] = Field(min_length=1, max_length=64)
    outcome: _Timed | _Failed


class _PartResult(Closed):
    pack: Hash
    part: Place
    at: Time
    load: Load
    trials: list[_Trial] = Field(max_length=4096)
    final: _Trial | None


class _Problem(Closed):
    problem: str
    arrays: list[str]


class _Part(Closed):
    problem: Place
    title: str
    key: KernelKey
    library: str
    configs: list[dict[str, Any]] = Field(min_length=1)
    kernels: list[Place | None] = Field(min_length=1)
    rows: list[Place]
    checked_rows: list[Place]


class _Header(Closed):
    kind: Literal["awq_tvm tuning results"]
    schema_version: Literal[1]
    pack: Hash
    at: Time
    machine: Text
    features: list[Word]
    target: dict[str, Any]
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    tvm: Word
    parts: list[_Part]
    problems: list[_Problem]


@dataclass(frozen=True)
class PackMachine:
    """The machine that measured a pack; see ``Machine``."""

    machine: str
    threads: int
    busy: float | None
    name: Literal["pack"] = "pack"

    def load(self) -> float | None:
        """While it measured a part."""
        return self.busy


@dataclass(frozen=True)
class Results:
    """What a file of results says.

    Attributes:
        path: of it.
        target: what was measured.
        header: its first line.
        lines: the other lines that are good.
        bad: why others were set aside, in words.
    """

    path: Path
    target: Target
    header: _Header
    lines: tuple[_PartResult, ...]
    bad: tuple[str, ...]


def read_results(path: Path) -> Results:
    """Read what a pack wrote on a device; a bad line is set aside.

    Raises:
        ResourceError: the file cannot be read.
        UsageError: it holds no results.
        TargetError: the machine that measured cannot run code for the target that it names.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ResourceError("the results cannot be read", where=str(path), why=error.strerror) from error
    if len(content) > MAX_FILE_BYTES:
        raise _no_results(path, f"more than {MAX_FILE_BYTES} bytes")
    first, *rest = content.split(b"\n")
    try:
        header = _Header.model_validate(unsealed(first))
        target = Target.from_dict(header.target)
    except ValidationError as error:
        raise _no_results(path, first_fault(error)) from None
    except (ValueError, TypeError, AttributeError, AwqTvmError) as error:
        raise _no_results(path, str(error)) from None
    lacking = sorted(target.features - set(header.features))
    if lacking:
        raise TargetError(
            f"these results are of a machine that is no {target.name}",
            where=str(path),
            why=f"it lacks {', '.join(lacking)}",
        )
    lines, bad = [], []
    for number, line in enumerate(rest, 2):
        if not line.strip():
            continue
        try:
            found = _PartResult.model_validate(unsealed(line))
            if found.pack != header.pack:
                raise ValueError("it is of another pack")
            lines.append(found)
        except ValidationError as error:
            bad.append(f"line {number}: {first_fault(error)}")
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    return Results(path, target, header, tuple(lines), tuple(bad))


def import_results(results: Results, save: Callable[[TunedRecord], None]) -> TuneReport:
    """Make records of what a device measured.

    Args:
        results: from ``read_results``.
        save: called with each record.

    Returns:
        What came of it; ``refused`` also names the lines that were set aside, and ``left`` counts parts of the pack
        without a result.
    """
    report = TuneReport()
    report.refused += results.bad
    header, done = results.header, set()
    for line in results.lines:
        try:
            search = _search(results, line)
        except (ValueError, KeyError, TypeError, AttributeError, AwqTvmError) as error:
            report.refused.append(f"part {line.part}: {error}")
            continue
        done.add(line.part)
        machine = PackMachine(header.machine, header.threads, line.load)
        take(search, machine, None, save, report, at=line.at, tvm=header.tvm)
    report.left = len(header.parts) - len(done)
    return report


def _search(results: Results, line: _PartResult) -> Search:
    """A search that ended as the device's measurements say.

    Raises:
        ValueError: they do not fit the pack, or the schedules of this version.
    """
    if line.part >= len(results.header.parts):
        raise ValueError("the pack has no such part")
    planned = results.header.parts[line.part]
    problem = Problem.from_json(results.header.problems[planned.problem].problem)
    if problem.target != results.target:
        raise ValueError("it is of another target")
    part = next((part for part in problem.parts if problem.key(part) == planned.key), None)
    if part is None:
        raise ValueError(f"{planned.title[:200]}: this version has other schedules")
    places = []
    for fields in planned.configs:
        config = from_fields(problem.default, fields, part.fields)
        if config not in part.configs:
            raise ValueError(f"{planned.title[:200]}: {fields} is not in the space of its family")
        places.append(part.configs.index(config))
    if places[0] != 0 or len(set(places)) != len(places) or tuple(planned.rows) != part.timed_rows:
        raise ValueError(f"{planned.title[:200]}: it does not begin with the default, or other M were timed")
    search = Search(problem, part)
    search.failed = {
        places[number]: Failed("refused", "it could not be built")
        for number, kernel in enumerate(planned.kernels)
        if kernel is None
    }
    for trial in (*line.trials, *([line.final] if line.final else [])):
        _check(trial, len(places), len(planned.rows))
    for trial in line.trials:
        chosen = [places[number] for number in trial.places]
        if isinstance(trial.outcome, _Timed):
            take_times(search, chosen[1:], _timed(trial.outcome))
        else:
            search.failed[chosen[-1]] = Failed(trial.outcome.kind, trial.outcome.why)
    if line.final is None:
        return search
    if isinstance(line.final.outcome, _Failed):
        search.failed[0] = Failed(line.final.outcome.kind, line.final.outcome.why)
    else:
        decide(search, [places[number] for number in line.final.places], _timed(line.final.outcome))
    return search


def _check(trial: _Trial, candidates: int, rows: int) -> None:
    chosen = trial.places
    if chosen[0] != 0 or len(set(chosen)) != len(chosen) or max(chosen) >= candidates:
        raise ValueError("it names candidates that the pack does not have")
    if isinstance(trial.outcome, _Timed):
        for times in (trial.outcome.cold, trial.outcome.hot):
            if len(times) != len(chosen) or any(len(one) != rows for one in times):
                raise ValueError("it has not one time for each candidate and M")


def _timed(outcome: _Timed) -> Timed:
    return Timed(tuple(map(tuple, outcome.cold)), tuple(map(tuple, outcome.hot)))


def _no_results(path: Path, why: str) -> UsageError:
    return UsageError(
        "this file holds no results of a pack",
        where=str(path),
        why=why,
        fix="take what `python PACK RESULTS` wrote on the device, whole",
    )
