"""TVM's tracker and servers on loopback, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import native_runner as native


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, seconds: float = 300) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at {port}")


def wait_for_key(tracker_port: int, key: str, seconds: float = 300) -> None:
    """Until a device of that key is free."""
    from tvm import rpc

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = rpc.connect_tracker("127.0.0.1", tracker_port).summary()
        if found["queue_info"].get(key, {}).get("free"):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no device of key {key}")


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program and all that it starts."""
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        list(command),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def tracker() -> Iterator[int]:
    """The stock tracker; its port."""
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1), "--silent"]
    with running([sys.executable, "-m", "tvm.exec.rpc_tracker", *options]):
        wait_for(port)
        yield port


def server_command(tracker_port: int, key: str) -> list[str]:
    """The stock server, which names itself to the tracker."""
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1), "--silent"]
    at = ["--tracker", f"127.0.0.1:{tracker_port}", "--key", key]
    return [sys.executable, "-m", "tvm.exec.rpc_server", *options, *at]


SYSROOT = "/usr/aarch64-linux-gnu"


def arm_server_program(folder: Path) -> Path:
    """The server in C++ for ARM, on TVM's runtime alone."""
    program, wheels = folder / "rpc_server", native.AARCH64_WHEELS
    libraries = [wheels / "tvm" / "lib" / "libtvm_runtime.so", wheels / "tvm_ffi" / "lib" / "libtvm_ffi.so"]
    folders = ":".join(str(path.parent) for path in libraries)
    native.run_tool(
        [
            "aarch64-linux-gnu-g++", "-std=c++17", "-O1", f"-I{wheels / 'tvm_ffi' / 'include'}",
            Path(__file__).with_name("rpc_server.cc"), "-o", program,
            "-Wl,--no-as-needed", *libraries, f"-Wl,-rpath,{folders}", f"-Wl,-rpath-link,{folders}",
        ]
    )  # fmt: skip
    return program


def arm_server_command(
    program: Path, folder: Path, tracker_port: int, key: str, cpu: str = "max"
) -> list[str]:
    """The server on an emulated machine, which names itself to the tracker."""
    return ["qemu-aarch64", "-cpu", cpu, "-L", SYSROOT, str(program), str(folder), str(tracker_port), key]
