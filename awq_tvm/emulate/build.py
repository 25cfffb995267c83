"""Compile the C++ of generated kernels with the runtime that executes it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

from awq_tvm.emulate.cuda import cuda_units
from awq_tvm.emulate.metal import metal_units
from awq_tvm.emulate.objects import NATIVE, Job, compiled_objects, find_compiler, run_compiler

RUNTIME = ("runtime.cc", "access.cc", "warp.cc", "wgmma.cc", "cluster.cc")

Dialect = Literal["cuda", "metal"]
_UNITS = {"cuda": cuda_units, "metal": metal_units}
_OF_BUNDLES = {"cuda": "-O1", "metal": "-O2"}
"""How kernels are optimized that are launched often. -O2 makes those for CUDA no faster; in those for Metal it
unrolls loops over the parts of vectors, which would lie in memory, each access with its hook."""

_FLAGS = (
    "-std=c++17",
    "-w",
    "-fPIC",
    "-fno-strict-aliasing",
    f"-I{NATIVE}",
    f"-I{NATIVE / 'include'}",
)

# Every access to memory calls a hook. Nothing of the sanitizer itself is linked.
_HOOKS = ("-fsanitize=thread", "--param", "tsan-distinguish-volatile=0", "-fvisibility=hidden")


def build_kernels(source: str, dialect: Dialect, folder: Path) -> Path:
    """Compile generated kernels for this machine's CPU: quickly, as few launches do not repay more.

    Args:
        source: the device source of a library or bundle.
        dialect: what it is written in.
        folder: an existing folder for the C++ and the library.

    Returns:
        The library: a C interface, see `native/runtime.cc`.

    Raises:
        UnsupportedError: the source holds something that the emulator does not know.
        TargetError: there is no C++ compiler, or it rejects the translation.
    """
    return _build(source, dialect, folder, "-O0", (), ())


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

    libraries = (tvm_runtime, Path(libinfo.find_libtvm_ffi()))
    includes = [tvm_runtime.parents[1] / "include", *map(Path, libinfo.include_paths())]
    flags = (*_FLAGS, "-O0", f'-DAWQ_KIND="{dialect}"', *(f"-I{path}" for path in includes))
    device = Job(NATIVE / "device.cc", flags, libraries)
    return _build(source, dialect, folder, _OF_BUNDLES[dialect], (device,), libraries)


def _build(
    source: str,
    dialect: Dialect,
    folder: Path,
    optimize: str,
    device: tuple[Job, ...],
    libraries: tuple[Path, ...],
) -> Path:
    machine = ("-mf16c", "-mfma") if platform.machine() == "x86_64" else ()
    jobs = [*device, *(Job(NATIVE / name, (*_FLAGS, *machine, "-O3")) for name in RUNTIME)]
    for number, text in enumerate(_UNITS[dialect](source)):
        unit = folder / f"kernels{number}.cc"
        unit.write_text(text, encoding="utf-8")
        jobs.append(Job(unit, (*_FLAGS, *machine, *_HOOKS, optimize)))
    library = folder / "kernels.so"
    parts = map(str, [*compiled_objects(jobs), *libraries])
    # What kernels share stands in every unit, the same.
    link = ("-shared", "-Wl,-Bsymbolic", "-Wl,-z,muldefs")
    run_compiler([find_compiler(), *link, "-o", str(library), *parts])
    return library
