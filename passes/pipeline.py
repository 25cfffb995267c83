"""The order of the passes: this file reads like a table of contents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm.relax import transform as relax_transform

from awq_tvm.errors import UsageError
from awq_tvm.passes.add_candidates import AddCandidates
from awq_tvm.passes.add_decode_step import AddDecodeStep
from awq_tvm.passes.attach_metadata import AttachMetadata
from awq_tvm.passes.attach_schedules import AttachSchedules
from awq_tvm.passes.bundle_weights import BundleWeights
from awq_tvm.passes.combine_parallel_linears import CombineParallelLinears
from awq_tvm.passes.fold_transpose_matmul import FoldTransposeMatmul
from awq_tvm.passes.fuse_dequantize_matmul import FuseDequantizeMatmul
from awq_tvm.passes.fuse_dequantize_take import FuseDequantizeTake
from awq_tvm.passes.fuse_matmul_prologue import FuseMatmulPrologue
from awq_tvm.passes.fuse_output_gate import FuseOutputGate
from awq_tvm.passes.legalize_vector_math import LegalizeVectorMath
from awq_tvm.passes.overlap_launches import OverlapLaunches
from awq_tvm.passes.repack_dense_weights import RepackDenseWeights
from awq_tvm.passes.repack_weights import RepackWeights
from awq_tvm.passes.schedule_remaining import ScheduleRemaining
from awq_tvm.passes.schedule_rows import ScheduleRows
from awq_tvm.passes.verify_fusion import VerifyFusion
from awq_tvm.schedules.rule import Chooser
from awq_tvm.targets import Target

OPT_LEVELS = (0, 1, 2, 3)


def passes(target: Target, opt: int, chooser: Chooser | None = None) -> list[tuple[str, tvm.transform.Pass]]:
    """The passes from an exported model to scheduled PrimFuncs, each with its name.

    Args:
        target: what to schedule for.
        opt: 0 leaves quantized linears unfused, for finding faults; 1 fuses, repacks and schedules them; 2 also
            combines linears that share an input; 3 is the same as 2 so far.
        chooser: picks the kernels' configurations; None leaves it to their rules.

    Raises:
        UsageError: opt is not one of these.
    """
    if opt not in OPT_LEVELS:
        raise UsageError(f"there is no optimization level {opt}", fix=f"use one of {OPT_LEVELS}")
    found: list[tuple[str, tvm.transform.Pass]] = []

    # What the model means
    if opt >= 2:
        found += [("combine_parallel_linears", CombineParallelLinears())]
    found += [("fold_transpose_matmul", FoldTransposeMatmul())]

    # One PrimFunc per quantized linear
    if opt >= 1:
        found += [
            ("fuse_dequantize_matmul", FuseDequantizeMatmul()),
            ("fuse_dequantize_take", FuseDequantizeTake()),
            ("verify_fusion", VerifyFusion()),
        ]

    # How the target does it
    found += [
        ("fuse_output_gate", FuseOutputGate(target)),
        ("repack_weights", RepackWeights(target)),
        ("repack_dense_weights", RepackDenseWeights(target)),
        ("fuse_matmul_prologue", FuseMatmulPrologue(target)),
        ("attach_schedules", AttachSchedules(target, chooser)),
    ]

    # A second entry, for one token of one sequence
    found += [("add_decode_step", AddDecodeStep())]

    # Norms and gates that no matmul took in
    if target.kind != "cpu":
        found += [("schedule_rows", ScheduleRows(target))]

    # A third, for what sampling needs of logits
    if target.kind != "cpu":
        found += [("add_candidates", AddCandidates(target))]

    # Everything else
    found += [("remove_redundant_reshape", relax_transform.RemoveRedundantReshape())]
    if target.kind == "cpu":
        found += [("legalize_vector_math", LegalizeVectorMath())]
    else:
        found += [("legalize_ops", relax_transform.LegalizeOps())]
    found += [
        ("rewrite_dataflow_reshape", relax_transform.RewriteDataflowReshape()),
        ("annotate_op_pattern", relax_transform.AnnotateTIROpPattern()),
        ("fold_constant", relax_transform.FoldConstant()),
        ("fuse_ops", relax_transform.FuseOps()),
        ("fuse_tir", relax_transform.FuseTIR()),
        ("eliminate_dead_code", relax_transform.DeadCodeElimination()),
    ]
    if target.kind == "cpu":
        found += [("schedule_remaining", ScheduleRemaining())]
    else:
        found += [("overlap_launches", OverlapLaunches(target))]

    # What the runtime sees: one argument for all weights, and what the library says of itself
    found += [("bundle_weights", BundleWeights()), ("attach_metadata", AttachMetadata(target))]
    return found


def run(
    mod: tvm.IRModule,
    target: Target,
    opt: int,
    *,
    debug_dump: Path | None = None,
    until: str | None = None,
    chooser: Chooser | None = None,
    on_pass: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> tvm.IRModule:
    """Run the passes, writing the IR after each into ``debug_dump`` if given.

    Args:
        mod: what ``awq_tvm.models.export`` made.
        target: what to schedule for.
        opt: see ``passes``.
        debug_dump: an existing folder.
        until: name of the pass before which to stop.
        chooser: see ``passes``.
        on_pass: called before each pass with its name, how many are done, and how many there are.
    """
    steps = passes(target, opt, chooser)
    _dump(mod, debug_dump, 0, "exported")
    for number, (name, step) in enumerate(steps):
        if name == until:
            break
        on_pass(name, number, len(steps))
        with tvm.target.Target(target.tvm_target_with_host):
            mod = _apply(step, mod)
        _dump(mod, debug_dump, number + 1, name)
    return mod


def _apply(step: tvm.transform.Pass, mod: tvm.IRModule) -> tvm.IRModule:
    """Run one pass; ours without the way through TVM, on which an error loses its class and its parts."""
    transform = getattr(step, "transform_module", None)
    return step(mod) if transform is None else transform(mod, tvm.transform.PassContext.current())


def _dump(mod: tvm.IRModule, folder: Path | None, number: int, name: str) -> None:
    if folder is not None:
        (folder / f"{number:02d}_{name}.py").write_text(mod.script(show_meta=True), encoding="utf-8")
