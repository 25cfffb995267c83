"""Pushing through TVM's RPC server: the one in Python on this machine, one in C++ on an emulated ARM machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from awq_tvm.compile.driver import compile_model
from awq_tvm.errors import ResourceError, TargetError, UsageError
from awq_tvm.push.address import Address
from awq_tvm.push.push import DEFAULT_PROMPT, push_bundle
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.bundle.conftest import make_bundle
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny
from tests.support.demo_bundle import make_demo_bundle
from tests.support.devices import put_tool
from tests.support.rpc_devices import arm_server_program

pytestmark = native.needs_cmake
SYSROOT = "/usr/aarch64-linux-gnu"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.installed_runner(tmp_path_factory)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of TVM's own server on loopback."""
    pytest.importorskip("cloudpickle", reason="TVM's RPC server takes cloudpickle")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    options = ["--host", "127.0.0.1", "--port", str(number), "--port-end", str(number + 1), "--silent"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tvm.exec.rpc_server", *options],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.1)
        yield number
    finally:
        # It has processes of its own.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def address(port: int, folder: Path | str, runner: Path | None) -> Address:
    return Address(f"rpc://127.0.0.1:{port}", "rpc", "127.0.0.1", port, folder=str(folder), runner=runner)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_device_generates_what_this_machine_does(
    port: int, runner: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = tiny.quantized_llama(tmp_path_factory).bundle
    device = address(port, tmp_path / "there" / "llama", runner)
    report = push_bundle(bundle, device, prompt="w5 w7 w11", max_tokens=12)
    assert contents(tmp_path / "there" / "llama") == contents(bundle)
    assert (report.files_sent, report.bytes_sent) == (report.files, report.bytes)
    assert report.test is not None
    assert (report.test.ran, report.test.same_as_here, len(report.test.token_ids)) == (
        "awq_tvm_run",
        True,
        12,
    )
    again = push_bundle(bundle, device, prompt="w5 w7 w11", max_tokens=12)
    assert (again.files_sent, again.bytes_sent, again.runner_bytes_sent) == (0, 0, 0)
    assert again.test is not None
    assert again.test.token_ids == report.test.token_ids


def test_what_arrived_is_not_sent_again(port: int, runner: Path, tmp_path: Path) -> None:
    tokenizer = os.urandom(3 << 20)
    bundle = make_bundle(tmp_path / "bundle", tokenizer=tokenizer)
    partial = tmp_path / "there.partial"
    partial.mkdir()
    (partial / ".being-pushed-by-awq_tvm").touch()
    (partial / ".arriving-tokenizer.json").write_bytes(tokenizer[: 2 << 20])
    report = push_bundle(bundle, address(port, tmp_path / "there", runner), smoke_test=False)
    assert report.bytes - report.bytes_sent == 2 << 20
    assert contents(tmp_path / "there") == contents(bundle)


def test_trouble_there(port: int, runner: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(ResourceError, match="refused"):
        push_bundle(bundle, address(port, "/proc/nothing", runner), smoke_test=False)
    other = tmp_path / "runner"
    shutil.copytree(runner, other)
    (other / "lib" / "libawq_tvm_rpc.so").write_bytes(b"no library")
    with pytest.raises(TargetError, match="cannot load the runner's library"):
        push_bundle(bundle, address(port, tmp_path / "there", other), smoke_test=False)


def test_no_server_and_no_runner(runner: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(ResourceError, match="cannot be reached"):
        push_bundle(bundle, address(1, "/x", runner), smoke_test=False)
    with pytest.raises(UsageError, match="needs the runner"):
        push_bundle(bundle, address(1, "/x", None), smoke_test=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "bin" / "awq_tvm_run").touch()
    with pytest.raises(UsageError, match=r"libawq_tvm_rpc\.so is missing"):
        push_bundle(bundle, address(1, "/x", tmp_path), smoke_test=False)


@pytest.fixture
def arm_runner(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner for ARM, its program behind the emulator: scripts on the emulated machine run on this one."""
    made = Path(shutil.copytree(native.installed_aarch64_runner(tmp_path_factory), tmp_path / "runner"))
    (made / "bin" / "awq_tvm_run").rename(made / "bin" / "awq_tvm_run.aarch64")
    put_tool(made / "bin", "awq_tvm_run", f'exec qemu-aarch64 -cpu max -L {SYSROOT} "$0.aarch64" "$@"')
    return made


@pytest.fixture
def arm_port(arm_runner: Path, tmp_path: Path) -> Iterator[int]:
    """The port of a server on an emulated ARM machine."""
    work, program = tmp_path / "work", arm_server_program(tmp_path)
    work.mkdir()
    server = subprocess.Popen(
        ["qemu-aarch64", "-cpu", "max", "-L", SYSROOT, program, work], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_an_emulated_arm_machine_generates_what_this_machine_does(
    arm_runner: Path, arm_port: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = tiny.quantized_llama(tmp_path_factory).checkpoint
    bundles = {target: tmp_path / target for target in ("armv8.2-dotprod", "cpu")}
    for target, bundle in bundles.items():
        options = {"target": target, "activations": "float", "vocabulary_bits": 16, "kv_cache": "float32"}
        compile_model(str(checkpoint), bundle, **options)  # type: ignore[arg-type]
    device = address(arm_port, tmp_path / "there" / "llama", arm_runner)
    report = push_bundle(bundles["armv8.2-dotprod"], device, prompt="w5 w7 w11", max_tokens=24)
    with Engine.load(bundles["cpu"]) as engine:
        expected = engine.generate("w5 w7 w11", SamplingOptions(max_tokens=24)).token_ids
    assert report.test is not None
    # The bundle for ARM cannot be run here, but one of the same model can.
    assert (report.test.same_as_here, report.test.token_ids) == (None, expected)
    again = push_bundle(bundles["armv8.2-dotprod"], device, prompt="w5 w7 w11", max_tokens=24)
    assert (again.bytes_sent, again.runner_bytes_sent) == (0, 0)
    with pytest.raises(TargetError, match="found aarch64"):
        push_bundle(bundles["cpu"], device, prompt="w5", max_tokens=1)


@pytest.mark.slow
def test_a_real_model_on_an_emulated_arm_machine(arm_runner: Path, arm_port: int, tmp_path: Path) -> None:
    here = make_demo_bundle(tmp_path, "armv8.2-dotprod")
    device = address(arm_port, tmp_path / "there" / "demo", arm_runner)
    report = push_bundle(tmp_path / "armv8.2-dotprod", device)
    with Engine.load(here) as engine:
        expected = engine.generate(DEFAULT_PROMPT, SamplingOptions(max_tokens=16)).token_ids
    assert report.test is not None
    # " Paris.", and then two tokens 0.2 of a logit apart, which is what activations of 8 bits leave to the machine.
    assert report.test.same_as_here is None
    assert report.test.token_ids[:3] == expected[:3]
    assert push_bundle(tmp_path / "armv8.2-dotprod", device).bytes_sent == 0
