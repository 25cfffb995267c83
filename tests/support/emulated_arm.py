"""ARM kernels, cross-compiled here and run by qemu as a given CPU on NumPy arrays."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

CXX, QEMU = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
CALLER = Path(__file__).with_name("call_packed.cc")
_CODES = {"i": 0, "u": 1, "f": 2}

needs_qemu = pytest.mark.skipif(not (CXX and QEMU), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")


def build_caller(folder: Path) -> Path:
    """The ARM program that calls a function of a library."""
    program = folder / "call_packed"
    include = Path(tvm_ffi.__file__).parent / "include"
    command = [CXX, "-std=c++17", "-rdynamic", f"-I{include}", "-o", program, CALLER, "-ldl"]
    subprocess.run(list(map(str, command)), check=True)
    return program


def link(executable: tvm.runtime.Executable, library: Path) -> None:
    """Link what was compiled for ARM."""
    executable.export_library(str(library), fcompile=tvm.support.cc.cross_compiler(CXX))


def call(
    caller: Path, cpu: str, library: Path, name: str, arguments: Sequence[np.ndarray[Any, Any] | int | float]
) -> list[np.ndarray[Any, Any]]:
    """Call a function; returns its array arguments as it left them.

    Args:
        caller: from ``build_caller``.
        cpu: what qemu is to be.
        library: from ``link``.
        name: global symbol of the function.
        arguments: arrays and numbers, in order.
    """
    words: list[str] = []
    files: list[tuple[Path, np.ndarray[Any, Any]]] = []
    for i, argument in enumerate(arguments):
        if not isinstance(argument, np.ndarray):
            words += [type(argument).__name__, repr(argument)]
            continue
        file = library.with_name(f"{name}.{i}")
        file.write_bytes(argument.tobytes())
        shape = ",".join(map(str, argument.shape))
        words += [str(file), f"{_CODES[argument.dtype.kind]}:{argument.dtype.itemsize * 8}:{shape}"]
        files.append((file, argument))
    emulator = [str(QEMU), "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu", str(caller)]
    command = [*emulator, str(library), f"__tvm_ffi_{name}", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [np.fromfile(file, array.dtype).reshape(array.shape) for file, array in files]
