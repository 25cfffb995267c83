"""Building for a CPU, this machine's or another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.compile.toolchain.lower import build_executable, lower_relax
from awq_tvm.compile.toolchain.result import BuiltLibrary
from awq_tvm.compile.toolchain.static import Archiver, symbol_prefix, with_prefix

if TYPE_CHECKING:
    from awq_tvm.targets import Target


def build_cpu(
    mod: Any, target: Target, out_dir: Path, *, pipeline: Any = None, name: str = "model"
) -> BuiltLibrary:
    """See ``build_library``."""
    # A missing linker is found before the minutes of compiling.
    linker = linker_for(target.tvm_target["mtriple"])
    path = out_dir / f"model{linker.extension}"
    lowered = lower_relax(mod, target.tvm_target_with_host, pipeline)
    prefix = ""
    if isinstance(linker, Archiver):
        prefix = symbol_prefix(name)
        lowered = with_prefix(lowered, prefix)
    executable = build_executable(lowered, target.tvm_target_with_host)
    executable.export_library(str(path), fcompile=linker)
    return BuiltLibrary(path, notes=(linker.note,), symbol_prefix=prefix)
