"""Which linker a platform takes."""

from __future__ import annotations

from awq_tvm.compile.toolchain.cross import cross_linker
from awq_tvm.compile.toolchain.host import host_linker, is_host
from awq_tvm.compile.toolchain.linker import Linker


def linker_for(mtriple: str) -> Linker:
    """The linker for an LLVM triple: this machine's own where it fits, else a cross linker.

    Raises:
        TargetError: none is installed, or there is none for the platform.
    """
    return host_linker() if is_host(mtriple) else cross_linker(mtriple)
