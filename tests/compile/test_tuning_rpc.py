"""Measuring through TVM's stock tracker and server, with candidates that hang, abort and compute wrong numbers."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from awq_tvm.cli.main import run
from awq_tvm.compile.tuning.measurement import Failed, Timed, Trial
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import TunedRecord
from awq_tvm.compile.tuning.record_file import read_records
from awq_tvm.compile.tuning.rpc import RpcMeasurer, tracker_address
from awq_tvm.compile.tuning.tuner import tune
from awq_tvm.errors import TargetError, UsageError
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import detect, resolve
from tests.support import rpc_devices as devices
from tests.support.faulty_rules import TOLD

for _needed in ("cloudpickle", "tornado"):
    pytest.importorskip(_needed, reason="TVM's tracker takes it: the extra rpc")

HERE = detect()
FAULTY = Problem(MatmulSpec(88, 24, 4, 8, "float32"), HERE, "test.faulty")
MODULES = ("tests.support.faulty_rules",)
LIMIT = 5.0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with devices.tracker() as number:
        yield number


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[None]:
    with devices.running(devices.server_command(port, "board")):
        yield


@pytest.fixture(scope="module")
def measurer(port: int, server: None) -> Iterator[RpcMeasurer]:
    with connected(port, "board") as made:
        yield made


def connected(port: int, key: str, wait: float = 30.0) -> RpcMeasurer:
    """A measurer, when the device has come up."""
    devices.wait_for_key(port, key)
    return RpcMeasurer(HERE, ("127.0.0.1", port), key, limit=LIMIT, wait=wait, modules=MODULES)


def trial(*faults: str) -> Trial:
    (part,) = FAULTY.parts
    configs = tuple({"fault": fault} for fault in faults)
    return Trial(FAULTY, configs, part.timed_rows, part.checked_rows, seconds=0.01)


def is_alive(measurer: RpcMeasurer) -> bool:
    """A good candidate is measured."""
    outcome = measurer.measure(trial("none"))
    return isinstance(outcome, Timed) and all(0 < t < 1e6 for t in (*outcome.hot[0], *outcome.cold[0]))


@pytest.mark.parametrize(("fault", "kind", "why"), [("hang", "slow", "no result after 5 s"), *TOLD])
def test_a_faulty_candidate_is_survived(measurer: RpcMeasurer, fault: str, kind: str, why: str) -> None:
    outcome = measurer.measure(trial("none", fault))
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert why in outcome.why
    assert is_alive(measurer)


def test_it_says_what_it_measured_on(measurer: RpcMeasurer) -> None:
    assert is_alive(measurer)
    assert measurer.name == "rpc"
    assert measurer.machine
    load = measurer.load()
    assert load is not None
    assert load >= 0


@pytest.mark.slow
def test_a_tuner_survives_every_fault_and_chooses_what_works(measurer: RpcMeasurer) -> None:
    saved: list[TunedRecord] = []
    report = tune([FAULTY], measurer, saved.append, trials=100)
    (record,) = saved
    assert record.config == {"fault": "none"}
    assert record.measured.by == "rpc"
    assert len(report.refused) == len(FAULTY.parts[0].configs) - 1


@pytest.mark.slow
def test_a_device_that_comes_back_is_used_again(port: int) -> None:
    command = devices.server_command(port, "restarted")
    with devices.running(command) as first, connected(port, "restarted") as measurer:
        assert is_alive(measurer)
        devices.end(first)
        with devices.running(command):
            assert is_alive(measurer)


@pytest.mark.slow
def test_a_device_that_is_lost_ends_the_tuning(port: int) -> None:
    saved: list[TunedRecord] = []
    second = Problem(MatmulSpec(88, 32, 4, 8, "float32"), HERE, "test.faulty")
    command = devices.server_command(port, "mortal")
    with devices.running(command) as server, connected(port, "mortal", wait=1.0) as measurer:

        def save(record: TunedRecord) -> None:
            saved.append(record)
            devices.end(server)

        report = tune([FAULTY, second], measurer, save, trials=1)
    assert len(saved) == len(report.records) == report.left == 1
    assert report.lost is not None
    assert "No device to measure on" in report.lost.what
    assert "no device of this key is there" in str(report.lost)


@pytest.mark.slow
def test_a_client_that_is_lost_is_started_again(measurer: RpcMeasurer) -> None:
    pid = measurer._worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    outcome = measurer.measure(trial("none"))
    assert isinstance(outcome, Failed)
    assert "no answer came from the device" in outcome.why
    assert is_alive(measurer)


def test_no_such_key_and_no_free_device_are_said(port: int, measurer: RpcMeasurer) -> None:
    with pytest.raises(TargetError, match=r"no device of this key is there; the keys are .*board") as error:
        RpcMeasurer(HERE, ("127.0.0.1", port), "toaster")
    assert error.value.exit_code == 5
    with pytest.raises(TargetError, match="every device of this key is busy"):
        RpcMeasurer(HERE, ("127.0.0.1", port), "board", wait=0.5)


@pytest.mark.slow
def test_something_else_than_a_tracker_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer() -> None:
            for _ in range(2):
                connection, _ = other.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(TargetError, match="no tracker answers"):
            RpcMeasurer(HERE, other.getsockname(), "board")


@pytest.mark.slow
def test_a_device_that_cannot_run_the_code_is_refused(port: int) -> None:
    with devices.running(devices.server_command(port, "other")):
        devices.wait_for_key(port, "other")
        with pytest.raises(UsageError, match="threads cannot be measured"):
            RpcMeasurer(HERE, ("127.0.0.1", port), "other", threads=4096)
        if HERE.family == "x86":
            with pytest.raises(TargetError, match="cannot load a library for graviton-3"):
                RpcMeasurer(resolve("graviton-3"), ("127.0.0.1", port), "other")
    with pytest.raises(TargetError, match="cannot be measured from another machine"):
        RpcMeasurer(resolve("cuda"), ("127.0.0.1", port), "other")


@pytest.mark.parametrize("text", ["", "9190", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no address of a tracker"):
        tracker_address(text)


def test_a_tracker_elsewhere_is_refused_with_a_tunnel() -> None:
    assert tracker_address("localhost:9190") == ("localhost", 9190)
    assert tracker_address("[::1]:9190") == ("::1", 9190)
    with pytest.raises(UsageError, match=r"ssh -L 9190:127\.0\.0\.1:9190 farm"):
        tracker_address("farm:9190")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["64x48", "--rpc", "127.0.0.1:1"], 2, "--rpc goes with --key"),
        (["64x48", "--key", "board"], 2, "--rpc goes with --key"),
        (["64x48", "--rpc", "127.0.0.1:1", "--key", "k", "--pack", "p"], 2, "not with --pack"),
        (["--import", "r", "--rpc", "127.0.0.1:1", "--key", "k"], 2, "no --rpc"),
        (["64x48", "--rpc", "127.0.0.1:1", "--key", "k"], 5, "no tracker answers"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", *arguments]) == code
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_verb_tunes_and_keeps_what_was_found(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    with devices.running(devices.server_command(port, "verb")):
        devices.wait_for_key(port, "verb")
        arguments = ["tune", "64x48", "--group-size", "32", "--trials", "2", "--rpc", f"127.0.0.1:{port}"]
        assert run([*arguments, "--key", "verb", "-o", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = read_records([file]).records
    assert len(found) == len(document["records"]) > 0
    assert {record.measured.by for record in found} == {"rpc"}
    assert {record.key.target for record in found} == {HERE.fingerprint}
