"""The two halves of ``tvm.compile``: Relax passes, then code generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tvm
from tvm import relax

from awq_tvm.compile.toolchain.overlap import PIPELINE
from awq_tvm.passes.capture_graphs import CaptureGraphs
from awq_tvm.passes.lift_workspace import LiftWorkspace


def has_relax(mod: Any) -> bool:
    """Whether the module holds a Relax function, so that it becomes a virtual machine's program."""
    return any(isinstance(function, relax.Function) for _, function in mod.functions_items())


def lower_relax(mod: Any, target: dict[str, Any], pipeline: Any = None) -> Any:
    """Run the Relax passes down to what the virtual machine's code generator takes.

    Args:
        mod: a ``tvm.IRModule``; without Relax functions it is returned as it is.
        target: what ``tvm.target.Target`` takes, the host inside.
        pipeline: a pass or any function of a module; None for TVM's default of the target.
    """
    if not has_relax(mod):
        return mod
    built_for = tvm.target.Target(target)
    if pipeline is None:
        pipeline = gpu_pipeline(built_for) if "gpu" in built_for.keys else cpu_pipeline()
    with built_for:
        return pipeline(mod)


def cpu_pipeline() -> Any:
    """TVM's passes for CPUs, with ours that needs its plan of the memory."""
    return tvm.transform.Sequential(
        [
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps(),
            *_plan_memory(),
            *_to_the_virtual_machine(),
        ]
    )


def gpu_pipeline(target: Any) -> Any:
    """TVM's passes for a GPU, the same way; on Metal, what no rule of ours schedules stays off the matrix units.

    TVM's matrix kernels for Metal sum in float16, and loading their intrinsics alone takes minutes on a small
    machine, so its matmul rule is left out there: the general rules take such a function.
    """
    from tvm.s_tir import dlight

    matmul = [] if target.kind.name == "metal" else [dlight.gpu.Matmul()]
    graphs = [CaptureGraphs()] if target.kind.name == "cuda" else []
    return tvm.transform.Sequential(
        [
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            dlight.ApplyDefaultSchedule(
                *matmul,
                dlight.gpu.GEMV(),
                dlight.gpu.Reduction(),
                dlight.gpu.GeneralReduction(),
                dlight.gpu.Fallback(),
            ),
            *_plan_memory(),
            *graphs,
            *_to_the_virtual_machine(),
        ]
    )


def _plan_memory() -> list[tvm.transform.Pass]:
    return [
        relax.transform.RewriteDataflowReshape(),
        # Reshapes are views now, and their kernels called by nobody.
        relax.transform.DeadCodeElimination(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        LiftWorkspace(),
    ]


def _to_the_virtual_machine() -> list[tvm.transform.Pass]:
    return [
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def build_executable(lowered: Any, target: dict[str, Any]) -> Any:
    """Generate code for a module that ``lower_relax`` returned.

    Returns:
        A ``tvm.runtime.Executable``, ready for ``export_library``.
    """
    built_for = tvm.target.Target(target)
    with built_for:
        return tvm.compile(lowered, built_for, relax_pipeline=None, tir_pipeline=PIPELINE)


def device_modules(module: Any, kind: str) -> Iterator[Any]:
    """Every module of a kind ("cuda", "metal") that a runtime module imports, at any depth."""
    if module.kind == kind:
        yield module
    for imported in module.imports:
        yield from device_modules(imported, kind)
