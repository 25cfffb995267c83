"""The search itself, with a measurer that knows the answer; and the whole tuner on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

import tests.support.faulty_rules  # noqa: F401  (registers the family here too)
from awq_tvm.compile.tuning.limits import Limits
from awq_tvm.compile.tuning.local import LocalMeasurer
from awq_tvm.compile.tuning.measurement import Failed, Outcome, Timed, Trial
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import KernelKey, TunedRecord, parse_line
from awq_tvm.compile.tuning.search import search_part
from awq_tvm.compile.tuning.tuner import roof_microseconds, tune
from awq_tvm.errors import TargetError
from awq_tvm.progress import ProgressEvent
from awq_tvm.schedules.config_fields import from_fields, to_fields
from awq_tvm.schedules.rule import Part
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import detect, resolve

TARGET = resolve("x86-64-v4-vnni")
SPEC = MatmulSpec(576, 960, 4, 64, "float32", activations="int8")
LIMITS = Limits(threads=1, fma=100.0, dot=400.0, read={"L2": 100.0, "L3": 50.0, "memory": 10.0})


def problem_of(spec: MatmulSpec | DenseSpec = SPEC) -> Problem:
    found = Problem.of(spec, TARGET)
    assert found is not None
    return found


@dataclass
class Known:
    """A machine of which the times are known.

    Attributes:
        cold: microseconds of a configuration, the same at every M or of each.
        hot: likewise.
        fails: whether it does not survive, and how.
    """

    cold: Callable[[dict[str, Any]], Any]
    hot: Callable[[dict[str, Any]], Any] = lambda fields: 1.0
    fails: Callable[[dict[str, Any]], Failed | None] = lambda fields: None
    trials: list[Trial] = field(default_factory=list)
    name: Literal["local"] = "local"
    threads: int = 1
    machine: str = "known"
    busy: float | None = None

    def load(self) -> float | None:
        return self.busy

    def measure(self, trial: Trial) -> Outcome:
        self.trials.append(trial)
        failed = next((f for config in trial.configs if (f := self.fails(config)) is not None), None)
        if failed is not None:
            return failed

        def times(of: Callable[[dict[str, Any]], Any]) -> tuple[tuple[float, ...], ...]:
            found = [of(config) for config in trial.configs]
            return tuple(t if isinstance(t, tuple) else (t,) * len(trial.rows) for t in found)

        return Timed(times(self.cold), times(self.hot))


def towards(blocks: int, ahead: int) -> Callable[[dict[str, Any]], float]:
    """Fastest for so many blocks, asked for so far ahead."""

    def cold(fields: dict[str, Any]) -> float:
        tile = fields["one_row"]
        return float(
            10 + abs(tile["blocks"] - blocks) + abs(math.log2((tile["ahead"] + 1) / (ahead + 1))) / 10
        )

    return cold


def likeliest(part: Part) -> int:
    """The place of the first candidate whose tile differs from the default's in more than how far it asks ahead."""
    shapes = [(config.one_row.blocks, config.one_row.sums) for config in part.configs]
    return next(place for place, shape in enumerate(shapes) if shape != shapes[0])


def test_the_default_is_measured_and_likely_ones_come_first() -> None:
    problem = problem_of()
    part = problem.parts[0]
    machine = Known(towards(4, 4096))
    search_part(problem, part, machine, trials=1 + 4)
    default = to_fields(part.configs[0], part.fields)
    assert machine.trials[0].configs[0] == default
    assert machine.trials[0].configs[1] == to_fields(part.configs[likeliest(part)], part.fields)
    tiles = [config["one_row"] for config in machine.trials[0].configs]
    shapes = {(tile["blocks"], tile["sums"]) for tile in tiles}
    assert len(shapes) == len(tiles), "of what matters less, one value is tried first"


@pytest.mark.parametrize(("blocks", "ahead"), [(1, 0), (5, 16384), (6, 2048)])
def test_the_search_goes_to_the_best(blocks: int, ahead: int) -> None:
    problem = problem_of()
    part = problem.parts[0]
    found = search_part(problem, part, Known(towards(blocks, ahead)), trials=32)
    tile = found.config()["one_row"]
    assert (tile["blocks"], tile["ahead"]) == (blocks, ahead)
    assert found.trials <= 32 < len(part.configs)
    assert from_fields(problem.default, found.config(), part.fields) == part.configs[found.chosen]


def test_no_candidate_is_measured_twice_in_the_search() -> None:
    problem = problem_of()
    part = problem.parts[0]
    machine = Known(towards(3, 0))
    found = search_part(problem, part, machine, trials=1000)
    assert found.trials == len(part.configs)
    tried = [repr(config) for trial in machine.trials[:-1] for config in trial.configs[1:]]
    assert len(tried) == len(set(tried)) == len(part.configs) - 1


def test_the_default_stays_where_nothing_is_better_by_more_than_chance() -> None:
    problem = problem_of()
    part = problem.parts[0]
    default = to_fields(part.configs[0], part.fields)
    for cold in (10.0, 9.9):
        machine = Known(lambda fields, cold=cold: 10.0 if fields == default else cold)  # type: ignore[misc]
        assert search_part(problem, part, machine, trials=9).chosen == 0


def test_what_is_slower_from_the_cache_is_not_chosen() -> None:
    problem = problem_of()
    part = problem.parts[0]
    default = to_fields(part.configs[0], part.fields)
    machine = Known(
        cold=lambda fields: 10.0 if fields == default else 5.0,
        hot=lambda fields: 2.0 if fields == default else 3.0,
    )
    assert search_part(problem, part, machine, trials=9).chosen == 0


def test_what_is_slower_at_one_number_of_rows_is_not_chosen() -> None:
    problem = problem_of()
    few = problem.parts[1]
    assert few.timed_rows == (2, 4, 8)
    default = to_fields(few.configs[0], few.fields)
    for other, wins in (((5.0, 5.0, 10.1), True), ((5.0, 5.0, 10.5), False)):
        machine = Known(lambda fields, other=other: (10.0,) * 3 if fields == default else other)  # type: ignore[misc]
        found = search_part(problem, few, machine, trials=5)
        assert (found.chosen != 0) == wins
    assert found.times == found.default_times
    assert found.times is not None
    assert found.times.cold == pytest.approx(10.0)


def test_a_candidate_that_fails_takes_none_of_its_neighbours_with_it() -> None:
    problem = problem_of()
    part = problem.parts[0]
    place = likeliest(part)
    bad = to_fields(part.configs[place], part.fields)
    machine = Known(
        towards(6, 8192), fails=lambda fields: Failed("died", "SIGSEGV") if fields == bad else None
    )
    found = search_part(problem, part, machine, trials=9)
    assert found.failed == {place: Failed("died", "SIGSEGV")}
    assert found.trials == 9
    assert found.chosen != place
    assert found.times is not None


def test_nothing_is_chosen_where_the_default_fails() -> None:
    problem = problem_of()
    report = tune(
        [problem], Known(towards(1, 0), fails=lambda fields: Failed("wrong", "by much")), pytest.fail
    )
    assert report.records == []
    assert len(report.failed) == len(problem.parts)
    assert "wrong, by much" in report.failed[0]


def test_a_second_run_measures_nothing() -> None:
    problems = [problem_of(), problem_of(DenseSpec(576, 960, "float16", "float32"))]
    machine = Known(lambda fields: 10.0)
    saved: list[TunedRecord] = []
    events: list[ProgressEvent] = []
    report = tune(problems, machine, saved.append, trials=5, limits=lambda: LIMITS, progress=events.append)
    parts = sum(len(problem.parts) for problem in problems)
    assert [r.key for r in saved] == [p.key(part) for p in problems for part in p.parts]
    assert saved == report.records
    assert len({record.key for record in saved}) == parts
    assert [parse_line(record.to_line()) for record in saved] == saved
    assert (report.known, report.left, report.interrupted) == (0, 0, False)
    assert events[-1].done == events[-1].total == 5 * parts
    assert "of the roof" in events[-1].message
    before = len(machine.trials)

    def unasked() -> Limits:
        pytest.fail("the limits are measured for nothing")

    known = {record.key for record in saved}
    again = tune(problems, machine, pytest.fail, known=known, limits=unasked)
    assert (again.known, again.records, len(machine.trials)) == (parts, [], before)


def test_the_clock_ends_the_search_and_keeps_what_was_found() -> None:
    problem = problem_of()
    machine = Known(lambda fields: 10.0)
    report = tune([problem], machine, lambda record: None, seconds=0.0)
    assert (report.left, report.records) == (len(problem.parts), [])
    turns = iter([True, True, False])
    found = search_part(problem, problem.parts[0], machine, trials=100, may_go_on=lambda: next(turns))
    assert found.times is not None
    assert found.trials == 1 + 2 * 4


def test_an_interrupt_keeps_what_was_found() -> None:
    problem = problem_of()
    saved: list[TunedRecord] = []

    def fails(fields: dict[str, Any]) -> None:
        if "few_rows" in fields:
            raise KeyboardInterrupt

    report = tune([problem], Known(towards(1, 0), fails=fails), saved.append, trials=5)
    assert report.interrupted
    assert [record.key.rows for record in saved] == ["1"]
    assert report.left == len(problem.parts) - 1


def test_a_machine_that_is_lost_ends_it_and_keeps_what_was_found() -> None:
    problem = problem_of()
    saved: list[TunedRecord] = []

    def fails(fields: dict[str, Any]) -> None:
        if "few_rows" in fields:
            raise TargetError("the device is gone")

    report = tune([problem], Known(towards(1, 0), fails=fails), saved.append, trials=5)
    assert report.lost is not None
    assert report.lost.what == "the device is gone"
    assert not report.interrupted
    assert [record.key.rows for record in saved] == ["1"]
    assert report.left == len(problem.parts) - 1


def test_the_load_of_the_machine_that_measured_is_in_the_record() -> None:
    for busy in (None, 2.5):
        saved: list[TunedRecord] = []
        tune([problem_of()], Known(lambda fields: 10.0, busy=busy), saved.append, trials=2)
        assert {record.measured.load for record in saved} == {busy}


def test_the_roof_is_of_memory_for_one_row_and_of_products_for_many() -> None:
    problem = problem_of()
    one, _, many = problem.parts
    codes, beside = 576 * 960 / 2, 576 // 64 * 960 * 3
    assert roof_microseconds(problem, one, LIMITS) == pytest.approx((codes + beside) / 10e3)
    assert roof_microseconds(problem, many, LIMITS) == pytest.approx(
        2 * math.sqrt(16 * 128) * 576 * 960 / 400e3
    )
    dense = problem_of(DenseSpec(576, 960, "float16", "float32"))
    assert roof_microseconds(dense, dense.parts[0], LIMITS) == pytest.approx(2 * 576 * 960 / 10e3)


def test_keys_differ_where_the_best_tiles_may() -> None:
    base = problem_of()
    keys: set[KernelKey] = {base.key(part) for part in base.parts}
    assert len(keys) == 3
    others = (
        MatmulSpec(576, 976, 4, 64, "float32", activations="int8"),
        MatmulSpec(576, 960, 4, 32, "float32", activations="int8"),
        MatmulSpec(576, 960, 8, 64, "float32", activations="int8"),
        MatmulSpec(576, 960, 4, 64, "float32"),
    )
    for spec in others:
        other = problem_of(spec)
        assert not keys & {other.key(part) for part in other.parts}
    same = problem_of(
        MatmulSpec(576, 960, 4, 64, "float32", True, "silu", True, activations="int8"),
    )
    assert keys == {same.key(part) for part in same.parts}, "an epilogue does not change the tiles"


@pytest.mark.slow
def test_a_tuner_on_this_machine_survives_every_fault_and_chooses_what_works() -> None:
    problem = Problem(MatmulSpec(88, 24, 4, 8, "float32"), detect(), "test.faulty")
    saved: list[TunedRecord] = []
    with LocalMeasurer(detect(), limit=8.0, modules=("tests.support.faulty_rules",)) as measurer:
        report = tune([problem], measurer, saved.append, trials=100)
    (record,) = saved
    assert record.config == {"fault": "none"}
    assert record.key.rule == "test.faulty"
    assert record.measured.trials == len(problem.parts[0].configs)
    kinds = {line.rpartition("): ")[2].partition(",")[0] for line in report.refused}
    assert kinds == {"slow", "died", "wrong", "refused"}
    assert len(report.refused) == len(problem.parts[0].configs) - 1
