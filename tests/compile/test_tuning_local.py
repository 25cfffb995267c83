"""Measuring in a child process, with candidates that really hang, abort and compute wrong numbers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.compile.tuning.local import LocalMeasurer
from awq_tvm.compile.tuning.measurement import (
    Failed,
    Timed,
    Trial,
    outcome_from_json,
    outcome_to_json,
)
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.errors import TargetError, UsageError
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target, detect, resolve
from tests.support.faulty_rules import TOLD

FAULTY = Problem(MatmulSpec(88, 24, 4, 8, "float32"), detect(), "test.faulty")
LIMIT = 6.0


@pytest.fixture(scope="module")
def measurer() -> Iterator[LocalMeasurer]:
    with LocalMeasurer(detect(), limit=LIMIT, modules=("tests.support.faulty_rules",)) as made:
        yield made


@pytest.fixture(scope="module")
def patient() -> Iterator[LocalMeasurer]:
    """One that gives real kernels the time to be built on a busy machine."""
    with LocalMeasurer(detect()) as made:
        yield made


def trial(fault: str) -> Trial:
    (part,) = FAULTY.parts
    return Trial(FAULTY, ({"fault": fault},), part.timed_rows, part.checked_rows, seconds=0.02)


def is_alive(measurer: LocalMeasurer) -> bool:
    """A good candidate is measured."""
    outcome = measurer.measure(trial("none"))
    return isinstance(outcome, Timed) and all(0 < t < 1e5 for t in (*outcome.hot[0], *outcome.cold[0]))


def test_attention_is_measured(patient: LocalMeasurer) -> None:
    problem = Problem(AttentionSpec("decode", AttentionShape(4, 2, 16)), detect(), "cpu.attention")
    (part,) = problem.parts
    configs = tuple(to_fields(config, part.fields) for config in part.configs[:2])
    outcome = patient.measure(Trial(problem, configs, part.timed_rows, part.checked_rows, seconds=0.02))
    assert isinstance(outcome, Timed)
    assert [len(times) for times in outcome.cold] == [1, 1]


@pytest.mark.parametrize(("fault", "kind", "why"), TOLD)
def test_a_faulty_candidate_is_survived(measurer: LocalMeasurer, fault: str, kind: str, why: str) -> None:
    outcome = measurer.measure(trial(fault))
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert why in outcome.why
    assert is_alive(measurer)


def test_a_candidate_that_hangs_is_ended_when_its_time_is_up(measurer: LocalMeasurer) -> None:
    assert is_alive(measurer)
    start = time.monotonic()
    outcome = measurer.measure(trial("hang"))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "slow"
    assert LIMIT <= time.monotonic() - start < LIMIT + 30
    assert is_alive(measurer)
    pid = measurer._worker.pid
    assert pid is not None
    assert children(pid) == []


def test_a_worker_that_is_lost_is_started_again_and_none_is_left() -> None:
    with LocalMeasurer(detect(), limit=LIMIT, modules=("tests.support.faulty_rules",)) as measurer:
        assert is_alive(measurer)
        lost = measurer._worker.pid
        assert lost is not None
        os.kill(lost, signal.SIGKILL)
        assert is_alive(measurer) or is_alive(measurer)  # the first may have been asked while it died
        second = measurer._worker.pid
        assert second not in (None, lost)
    assert not Path(f"/proc/{second}").exists()


def test_a_worker_that_cannot_start_says_why() -> None:
    with LocalMeasurer(detect(), limit=LIMIT, modules=("no.such.module",)) as broken:
        outcome = broken.measure(trial("none"))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "died"
    assert "no" in outcome.why


@pytest.mark.parametrize("activations", ["int8", pytest.param("float", marks=pytest.mark.slow)])
def test_every_part_of_a_linear_is_timed(patient: LocalMeasurer, activations: str) -> None:
    spec = MatmulSpec(128, 40, 4, 32, "float32", activations=activations)
    check_parts(patient, Problem.of(spec, detect()))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_every_part_of_an_unquantized_matmul_is_timed(patient: LocalMeasurer, dtype: str) -> None:
    check_parts(patient, Problem.of(DenseSpec(96, 40, dtype, "float32"), detect()))


def check_parts(measurer: LocalMeasurer, problem: Problem | None) -> None:
    assert problem is not None
    for number, part in enumerate(problem.parts):
        configs = tuple(to_fields(config, part.fields) for config in part.configs[1 : 3 if number else 2])
        outcome = measurer.measure(Trial(problem, configs, part.timed_rows, part.checked_rows, 0.02))
        assert isinstance(outcome, Timed), outcome
        assert len(outcome.cold) == len(outcome.hot) == len(configs)
        for times in (*outcome.cold, *outcome.hot):
            assert len(times) == len(part.timed_rows)
            assert all(0 < t < 1e5 for t in times)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_reference_is_not_the_kernel(bits: int) -> None:
    """Expected numbers are made from codes, scales and zero points by NumPy, so a wrong W is seen."""
    problem = Problem.of(MatmulSpec(64, 24, bits, 32, "float32"), detect())
    assert problem is not None
    numbers = Numbers(problem, 3)
    layout = problem.family.layout(problem.spec, problem.target)
    weight = np.empty((24, 64))
    for n in range(24):
        for k in range(64):
            code, scale, zero = layout.elements(problem.spec, numbers.packed, n, np.int64(k))
            weight[n, k] = (float(code) - float(zero)) * float(scale)
    y = numbers.x.astype(np.float64) @ weight.T
    assert numbers.error(y.astype(np.float32)) < 1e-6
    assert numbers.error(y[:2].astype(np.float32)) < 1e-6
    y[2, 5] += 0.01
    assert numbers.error(y.astype(np.float32)) > 1e-5


def test_a_target_this_machine_cannot_run_is_refused() -> None:
    other = "armv8.2-dotprod" if detect().family == "x86" else "x86-64-v3"
    for name, instead in {other: "--rpc or --pack", "cuda": "--pack FILE", "metal": "Apple's GPUs"}.items():
        with pytest.raises(TargetError, match="cannot run code") as caught:
            LocalMeasurer(resolve(name))
        assert instead in (caught.value.fix or "")


@pytest.mark.parametrize("threads", [0, 1000])
def test_threads_that_are_not_there_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        LocalMeasurer(detect(), threads=threads)


def test_what_goes_between_processes_comes_back_as_it_was() -> None:
    sent = trial("none")
    assert Trial.from_json(sent.to_json()) == sent
    outcomes: tuple[Any, ...] = (Timed(((1.0, 2.0),), ((0.5, 0.25),)), Failed("slow", "why"))
    for outcome in outcomes:
        assert outcome_from_json(outcome_to_json(outcome)) == outcome
    for text in ("", "{}", "null", '{"cold": 1}', "[1]"):
        with pytest.raises(ValueError, match=r".*"):
            outcome_from_json(text)
    assert Target.from_dict(detect().as_dict()) == detect()
    with pytest.raises(TargetError, match="no target"):
        Target.from_dict({**detect().as_dict(), "colour": "red"})


def children(pid: int) -> list[str]:
    """Processes whose parent it is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"PPid:\t{pid}\n" in text:
            found.append(text)
    return found
