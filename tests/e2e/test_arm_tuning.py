"""Tuning an emulated ARM machine through TVM's tracker, and what `compile` then does with the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.support.faulty_rules  # noqa: F401  (registers the family here too)
from awq_tvm.compile.driver import compile_model
from awq_tvm.compile.tuning import search
from awq_tvm.compile.tuning.measurement import Failed, Timed, Trial
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record_file import append_record, read_records
from awq_tvm.compile.tuning.rpc import RpcMeasurer
from awq_tvm.compile.tuning.shapes import model_wanted
from awq_tvm.compile.tuning.tuner import tune
from awq_tvm.errors import TargetError
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support import native_runner as native
from tests.support import rpc_devices as devices
from tests.support import tiny_decoder as tiny

for _needed in ("cloudpickle", "tornado"):
    pytest.importorskip(_needed, reason="TVM's tracker takes it: the extra rpc")
pytestmark = pytest.mark.slow

CHIP = resolve("armv8.2-dotprod")
KEY = "emulated"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    native.skip_without_aarch64()
    return devices.arm_server_program(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def port(program: Path) -> Iterator[int]:
    with devices.tracker() as number:
        yield number


@pytest.fixture(scope="module")
def measurer(program: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcMeasurer]:
    folder = tmp_path_factory.mktemp("device")
    with devices.running(devices.arm_server_command(program, folder, port, KEY)):
        devices.wait_for_key(port, KEY)
        modules = ("tests.support.faulty_rules",)
        with RpcMeasurer(CHIP, ("127.0.0.1", port), KEY, limit=30.0, modules=modules) as made:
            yield made


def test_records_are_used_for_that_target_and_for_nothing_else(
    measurer: RpcMeasurer,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Which tile is chosen under an emulator does not matter.
    monkeypatch.setattr(search, "SECONDS", 0.02)
    monkeypatch.setattr(search, "SECONDS_AT_LAST", 0.02)
    checkpoint = str(tiny.quantized_llama(tmp_path_factory).checkpoint)
    file = tmp_path / "records.jsonl"
    wanted = model_wanted(checkpoint, CHIP, vocabulary_bits=16)
    problems = [one.problem for one in wanted if one.problem and isinstance(one.spec, MatmulSpec)][:2]
    report = tune(problems, measurer, lambda record: append_record(file, record), trials=3)
    assert (report.failed, report.refused, report.left, report.lost) == ([], [], 0, None)
    records = read_records([file]).records
    assert [record.key for record in records] == [p.key(part) for p in problems for part in p.parts]
    assert {record.key.target for record in records} == {CHIP.fingerprint}
    assert {record.measured.by for record in records} == {"rpc"}
    assert {record.measured.machine for record in records} == {measurer.machine}
    again = tune(problems, measurer, pytest.fail, known={record.key for record in records})
    assert again.known == len(records)

    def tuned(target: str) -> int:
        made = compile_model(
            checkpoint,
            tmp_path / target,
            target=target,
            vocabulary_bits=16,
            records=[file],
            context_length=64,
        )
        return sum(kernel["count"] for kernel in made.kernels if kernel["source"] in ("tuned", "nearest"))

    assert tuned(CHIP.name) >= len(problems)
    assert tuned("raspberry-pi-5") == 0


@pytest.mark.parametrize(
    ("fault", "kind", "why"),
    [
        ("abort", "died", "SIGABRT"),
        ("segfault", "died", "SIGSEGV"),
        ("exit", "died", "ended with code 0"),
        ("wrong", "wrong", "at M = 1"),
    ],
)
def test_a_faulty_candidate_is_survived_there(measurer: RpcMeasurer, fault: str, kind: str, why: str) -> None:
    problem = Problem(MatmulSpec(88, 24, 4, 8, "float32"), CHIP, "test.faulty")
    outcome = measurer.measure(Trial(problem, ({"fault": "none"}, {"fault": fault}), (2,), (1,), 0.01))
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert why in outcome.why
    good = measurer.measure(Trial(problem, ({"fault": "none"},), (2,), (1,), 0.01))
    assert isinstance(good, Timed)


def test_a_cpu_without_the_features_is_refused(program: Path, port: int, tmp_path: Path) -> None:
    with devices.running(devices.arm_server_command(program, tmp_path, port, "old", cpu="cortex-a72")):
        devices.wait_for_key(port, "old")
        with pytest.raises(TargetError, match="it lacks dotprod"):
            RpcMeasurer(CHIP, ("127.0.0.1", port), "old")
