"""Building for Apple GPUs: Metal source inside a macOS library, without a Mac.

TVM writes each kernel as Metal Shading Language and the device compiles it when it is first launched. The
host part is Mach-O, linked here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.compile.toolchain.lower import build_executable, device_modules, lower_relax
from awq_tvm.compile.toolchain.result import BuiltLibrary, Kernel

if TYPE_CHECKING:
    from awq_tvm.targets import Target

SOURCE_NAME = "kernels.metal"
_KERNEL = re.compile(r"^kernel void (\w+)\(", re.MULTILINE)


def build_metal(mod: Any, target: Target, out_dir: Path, *, pipeline: Any = None) -> BuiltLibrary:
    """See ``build_library``; the source of all kernels is left in ``kernels.metal``."""
    linker = linker_for((target.host or {}).get("mtriple", ""))
    path = out_dir / f"model{linker.extension}"
    lowered = lower_relax(mod, target.tvm_target_with_host, pipeline)
    executable = build_executable(lowered, target.tvm_target_with_host)
    source = "\n".join(module.inspect_source("metal") for module in device_modules(executable.mod, "metal"))
    executable.export_library(str(path), fcompile=linker)
    kernels = tuple(Kernel(name) for name in _KERNEL.findall(source))
    source_path = out_dir / SOURCE_NAME
    source_path.write_text(source, encoding="utf-8")
    notes = (
        linker.note,
        f"{len(kernels)} Metal kernels travel as source: the device compiles each when it first runs it",
    )
    return BuiltLibrary(path, kernels, notes, (source_path,))
