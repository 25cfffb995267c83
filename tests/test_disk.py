from __future__ import annotations

import errno
import os
import sys

import pytest

from awq_tvm.compile.toolchain.linker import run_tool
from awq_tvm.disk import refuse_full_disk
from awq_tvm.emulate.objects import run_compiler
from awq_tvm.errors import ResourceError, TargetError

FULL = os.strerror(errno.ENOSPC)


def test_only_a_full_disk_is_refused() -> None:
    refuse_full_disk("kernels.cu(7): error: identifier is undefined", "nvcc")
    with pytest.raises(ResourceError, match="The disk is full") as error:
        refuse_full_disk(f"compiling\nfatal: cannot write a.o: {FULL}\n", "nvcc")
    assert (error.value.where, error.value.why) == ("nvcc", f"fatal: cannot write a.o: {FULL}")
    assert "TMPDIR" in (error.value.fix or "")


def test_tools_that_ran_out_of_room_are_told_from_those_that_refuse() -> None:
    def fails(why: str) -> list[str]:
        return [sys.executable, "-c", f"import sys; sys.exit({why!r})"]

    with pytest.raises(ResourceError):
        run_tool(fails(FULL), "The library could not be linked")
    with pytest.raises(TargetError):
        run_tool(fails("undefined symbol"), "The library could not be linked")
    with pytest.raises(ResourceError):
        run_compiler(fails(FULL))
    with pytest.raises(TargetError):
        run_compiler(fails("error: unknown"))
