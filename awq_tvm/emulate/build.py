"""Compile the C++ of generated kernels with the runtime that executes it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from awq_tvm.emulate.cuda import cuda_unit
from awq_tvm.emulate.metal import metal_unit
from awq_tvm.errors import TargetError

NATIVE = Path(__file__).parent / "native"
RUNTIME = ("runtime.cc", "access.cc")
MESSAGE_LINES = 20

Dialect = Literal["cuda", "metal"]
_UNITS = {"cuda": cuda_unit, "metal": metal_unit}

_FLAGS = (
    "-std=c++17",
    "-O1",
    "-w",
    "-fPIC",
    "-fno-strict-aliasing",
    f"-I{NATIVE}",
    f"-I{NATIVE / 'include'}",
)

# Every access to memory calls a hook. Nothing of the sanitizer itself is linked.
_HOOKS = ("-fsanitize=thread", "--param", "tsan-distinguish-volatile=0", "-fvisibility=hidden")


def build_kernels(source: str, dialect: Dialect, folder: Path) -> Path:
    """Compile generated kernels for this machine's CPU.

    Args:
        source: the device source of a library or bundle.
        dialect: what it is written in.
        folder: an existing folder for the C++, `kernels.cc`, and the library.

    Returns:
        The library: a C interface, see `native/runtime.cc`.

    Raises:
        UnsupportedError: the source holds something that the emulator does not know.
        TargetError: there is no C++ compiler, or it rejects the translation.
    """
    return _build(source, dialect, folder, {}, ())


def build_device(source: str, dialect: Dialect, folder: Path, tvm_runtime: Path) -> Path:
    """Compile generated kernels together with a stand-in for the GPU in TVM's runtime.

    Where the library is loaded beside TVM's runtime, devices of the kind are this machine's memory, and libraries
    compiled for them launch their kernels in the emulator.

    Args:
        source: see ``build_kernels``.
        dialect: see ``build_kernels``; also the kind of the device.
        folder: see ``build_kernels``.
        tvm_runtime: TVM's runtime library; its headers lie beside it, as in TVM's wheel.

    Raises:
        UnsupportedError: see ``build_kernels``.
        TargetError: see ``build_kernels``.
    """
    from tvm_ffi import libinfo

    includes = [tvm_runtime.parents[1] / "include", *map(Path, libinfo.include_paths())]
    flags = [f'-DAWQ_KIND="{dialect}"', *(f"-I{path}" for path in includes)]
    ffi = Path(libinfo.find_libtvm_ffi())
    return _build(source, dialect, folder, {"device.cc": flags}, (str(tvm_runtime), str(ffi)))


def _build(
    source: str,
    dialect: Dialect,
    folder: Path,
    more: dict[str, list[str]],
    libraries: tuple[str, ...],
) -> Path:
    unit = folder / "kernels.cc"
    unit.write_text(_UNITS[dialect](source), encoding="utf-8")
    compiler = find_compiler()
    flags = [*_FLAGS, *(("-mf16c", "-mfma") if platform.machine() == "x86_64" else ())]
    jobs = {unit: [*flags, *_HOOKS]}
    jobs |= {NATIVE / name: [*flags, "-O2"] for name in RUNTIME}
    jobs |= {NATIVE / name: [*_FLAGS, *own] for name, own in more.items()}
    objects = [str(folder / f"{path.stem}.o") for path in jobs]
    with ThreadPoolExecutor() as pool:
        commands = [
            [compiler, *own, "-c", str(path), "-o", into]
            for (path, own), into in zip(jobs.items(), objects, strict=True)
        ]
        for done in [pool.submit(_run, command) for command in commands]:
            done.result()
    library = folder / "kernels.so"
    _run([compiler, "-shared", "-Wl,-Bsymbolic", "-o", str(library), *objects, *libraries])
    return library


def find_compiler() -> str:
    """The C++ compiler on the path.

    Raises:
        TargetError: there is none.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise TargetError(
            "kernels cannot be executed here",
            where="the emulator",
            why="g++ is not on the path",
            fix="install it: apt-get install g++",
        )
    return compiler


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise TargetError(
            "the C++ of the kernels does not compile",
            where="the emulator",
            why="\n".join(
                [line for line in lines if "error" in line][:MESSAGE_LINES] or lines[-MESSAGE_LINES:]
            ),
            fix="teach awq_tvm/emulate what the kernel uses",
        )
