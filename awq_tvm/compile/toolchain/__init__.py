"""From a lowered module to a library for a device that this machine need not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_tvm.compile.toolchain.result import BuiltLibrary, Kernel
from awq_tvm.disk import require_room_to_compile
from awq_tvm.errors import UsageError

if TYPE_CHECKING:
    from awq_tvm.targets import Target

__all__ = ["BuiltLibrary", "Kernel", "build_library", "require_tools"]


def require_tools(target: Target, *, source_only: bool = False) -> None:
    """What building for a target takes is here: asked before hours of quantizing, and minutes of compiling.

    Args:
        target: what to build for.
        source_only: as of ``build_library``.

    Raises:
        UsageError: source-only, and the target's kernels are not compiled by nvcc.
        TargetError: a compiler or linker is missing.
        ResourceError: there is hardly room for temporary files.
    """
    from awq_tvm.compile.toolchain.linkers import linker_for
    from awq_tvm.compile.toolchain.nvcc import Nvcc

    if source_only and target.kind != "cuda":
        raise UsageError(
            "Only bundles for CUDA can be left as source.",
            where="--source-only",
            why=f"nvcc compiles nothing for target {target.name}",
            fix="leave out --source-only",
        )
    require_room_to_compile()
    if target.kind == "cuda" and not source_only:
        Nvcc.find()
    linker_for(str((target.host or target.tvm_target).get("mtriple", "")))


def build_library(
    mod: Any,
    target: Target,
    out_dir: Path,
    *,
    pipeline: Any = None,
    fast_math: bool = False,
    source_only: bool = False,
    name: str = "model",
) -> BuiltLibrary:
    """Build a module for a target and link it into ``out_dir``.

    Args:
        mod: a ``tvm.IRModule`` of Relax functions and PrimFuncs, or of PrimFuncs alone.
        target: what to build for; its kind picks the toolchain.
        out_dir: an existing folder; the library, and for GPUs the kernels' sources and reports, go there.
        pipeline: the Relax passes down to VM bytecode, a ``tvm.transform.Pass`` or any function of a module;
            None for TVM's own default of the target. It runs in this process, under the target.
        name: of the model, for the symbols of an archive.
        fast_math: CUDA only: let nvcc trade accuracy for speed in divisions, roots and exponentials.
        source_only: CUDA only: leave nvcc out, for ``toolchain.cuda.finish_cuda`` on a machine that has it.

    Returns:
        Where the library is, and what is known of each GPU kernel in it.

    Raises:
        TargetError: a compiler or linker of the target is missing or rejects the code.
    """
    if target.kind == "cuda":
        from awq_tvm.compile.toolchain.cuda import build_cuda

        return build_cuda(
            mod, target, out_dir, pipeline=pipeline, fast_math=fast_math, source_only=source_only
        )
    if target.kind == "metal":
        from awq_tvm.compile.toolchain.metal import build_metal

        return build_metal(mod, target, out_dir, pipeline=pipeline)
    from awq_tvm.compile.toolchain.cpu import build_cpu

    return build_cpu(mod, target, out_dir, pipeline=pipeline, name=name)
