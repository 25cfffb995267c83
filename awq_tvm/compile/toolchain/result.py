"""What a build leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    """One GPU kernel, compiled for one architecture.

    Attributes:
        name: as the library launches it.
        arch: "sm_80" and the like for CUDA; "" for Metal, whose kernels are compiled on the device.
        registers: per thread, or None where the compiler does not tell.
        spill_store_bytes: per thread, that did not fit the registers.
        spill_load_bytes: likewise, read back.
        shared_bytes: static shared memory of a block.
    """

    name: str
    arch: str = ""
    registers: int | None = None
    spill_store_bytes: int | None = None
    spill_load_bytes: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True)
class BuiltLibrary:
    """A linked library and what came with it.

    Attributes:
        path: ``model.so``, ``model.dylib`` for macOS, or the archive ``model.a`` for iOS.
        kernels: every GPU kernel, by architecture; empty for CPUs.
        notes: sentences for the user, for example which linker was used.
        symbol_prefix: what the symbols of an archive begin with; "" for a shared library.
        files: everything else written beside the library: kernel sources, binaries and reports.
    """

    path: Path
    kernels: tuple[Kernel, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    symbol_prefix: str = ""
