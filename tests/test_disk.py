from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile

import pytest

from awq_tvm.compile.toolchain import require_tools
from awq_tvm.compile.toolchain.linker import run_tool
from awq_tvm.disk import ROOM_BYTES, refuse_full_disk
from awq_tvm.emulate.objects import run_compiler
from awq_tvm.errors import ResourceError, TargetError
from awq_tvm.targets import resolve

FULL = os.strerror(errno.ENOSPC)


def test_only_a_full_disk_is_refused() -> None:
    refuse_full_disk("kernels.cu(7): error: identifier is undefined", "nvcc")
    with pytest.raises(ResourceError, match="The disk is full") as error:
        refuse_full_disk(f"compiling\nfatal: cannot write a.o: {FULL}\n", "nvcc")
    assert (error.value.where, error.value.why) == ("nvcc", f"fatal: cannot write a.o: {FULL}")
    assert "TMPDIR" in (error.value.fix or "")


@pytest.mark.parametrize("target", ["metal", "nvidia-a100", "x86-64-v3"])
def test_without_room_for_temporary_files_nothing_is_compiled(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tools(resolve(target), source_only=target == "nvidia-a100")
    room = shutil.disk_usage("/")._replace(free=ROOM_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    with pytest.raises(ResourceError, match="too little room to compile") as error:
        require_tools(resolve(target), source_only=target == "nvidia-a100")
    assert error.value.where == tempfile.gettempdir()


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
