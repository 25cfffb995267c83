"""Give norms and gates that no matmul has taken in kernels of their own, on GPUs."""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from awq_tvm.passes.gates import find_gate
from awq_tvm.passes.head_norms import find_head_norms
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter
from awq_tvm.schedules.attention.gpu.lanes import WARP, exchange_of
from awq_tvm.schedules.gpu.gate import gated
from awq_tvm.schedules.gpu.head_norm import norm_heads
from awq_tvm.schedules.gpu.norm import rms_norm
from awq_tvm.schedules.gpu.vectors import vectors_of
from awq_tvm.targets import Target


@tvm.transform.module_pass(opt_level=0, name="ScheduleRows")
class ScheduleRows:
    """Replace RMS norms over the last axis, and gates, by calls of our own kernels.

    Before::

        y = multiply(silu(gu[:, :K]), gu[:, K:])
        h = take(x, positions)
        z = rms_norm(h, norm)

    After::

        y = call_tir(gated, (gu,))
        z = call_tir(rms_norm, (x, positions, norm))

    Norms of the heads of q and k, between the linear that makes q, k and v and attention, become one call.

    Needs: AddDecodeStep, which looks for that take; to stand before TVM's legalization. Leaves alone: rows that are
    not whole vectors of 16 bytes, norms over other axes or with another dtype than their weight.
    """

    def __init__(self, target: Target) -> None:
        """Take the GPU that the kernels are for."""
        self.target = target
        self._exchange = exchange_of(tvm.target.Target(target.tvm_target_with_host))

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite every Relax function."""
        if self.target.warp_size != WARP:
            return mod
        for variable, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mod = self._rewritten(mod, variable.name_hint, func)
        return relax.transform.DeadCodeElimination(list(_entries(mod)))(mod)

    def _rewritten(self, mod: tvm.IRModule, name: str, func: relax.Function) -> tvm.IRModule:
        bindings = Bindings(mod, func)
        replacements: dict[relax.Var, Replacement] = {}
        for var, value in bindings:
            found = (
                self._norm(bindings, var)
                or self._norm_of_heads(bindings, var)
                or self._gate(bindings, var, value)
            )
            if found is not None:
                replacements[var] = found
        if not replacements:
            return mod
        rewriter = Rewriter(mod, replacements)
        changed = rewriter.visit_expr(func)
        updated = rewriter.builder_.get()
        updated[name] = changed
        return updated.with_attrs(mod.attrs) if mod.attrs else updated

    def _norm(self, bindings: Bindings, var: relax.Var) -> Replacement | None:
        norm = bindings.call(var, "relax.nn.rms_norm")
        if norm is None or [int(axis) for axis in norm.attrs.axes] not in ([-1], [var.ty.ndim - 1]):
            return None
        (x, weight), dtype = norm.args, str(var.ty.dtype)
        features = int(weight.ty.shape[0])
        if {str(x.ty.dtype), str(weight.ty.dtype)} != {dtype} or not vectors_of(features, dtype):
            return None
        take = bindings.call(x, "relax.take")
        rows = [*take.args] if take is not None and _is_of_rows(take) and bindings.uses[x] == 1 else [x]
        eps = float(norm.attrs.epsilon)
        # What is computed of weights is written by launches, as x is.
        first = self.target.overlaps_launches and bindings.is_weight(weight)
        kernel = rms_norm(features, eps, dtype, self._exchange, gathered=len(rows) == 2, weight_first=first)
        return partial(_call, kernel, "rms_norm", [*rows, weight], var.ty)

    def _norm_of_heads(self, bindings: Bindings, var: relax.Var) -> Replacement | None:
        found = find_head_norms(bindings, var)
        if found is None:
            return None
        dtype = str(found.x.ty.dtype)
        if not vectors_of(found.head_dim, dtype) or {str(weight.ty.dtype) for weight in found.weights} != {
            dtype
        }:
            return None
        kernel = norm_heads(found.parts, found.head_dim, found.eps, dtype, self._exchange)
        return partial(_call, kernel, "norm_heads", [found.x, *found.weights], var.ty)

    def _gate(self, bindings: Bindings, var: relax.Var, value: relax.Expr) -> Replacement | None:
        found = find_gate(bindings, value)
        if found is None or str(found[1].ty.dtype) != str(var.ty.dtype):
            return None
        features, dtype = int(var.ty.shape[1]), str(var.ty.dtype)
        if not vectors_of(features, dtype):
            return None
        return partial(_call, gated(found[0], features, dtype), "gated", [found[1]], var.ty)


def _is_of_rows(take: relax.Call) -> bool:
    """Whether rows of a matrix are taken by a list of int32."""
    table, positions = take.args
    return (
        int(take.attrs.axis) == 0
        and table.ty.ndim == 2
        and positions.ty.ndim == 1
        and str(positions.ty.dtype) == "int32"
        and str(take.attrs.mode) == "clip"
    )


def _call(
    kernel: tirx.PrimFunc, name: str, arguments: list[relax.Expr], ty: Any, rewriter: Rewriter
) -> relax.Expr:
    """The call of a kernel on rows; those of a tensor of more axes are the rows of its last one."""
    function = rewriter.add_func(_in_a_block(kernel).without_attr("global_symbol"), name)
    if ty.ndim == 2:
        return relax.call_tir(function, arguments, ty)
    x, *rest = arguments
    rows = tirx.const(1, "int64")
    for extent in list(ty.shape)[:-1]:
        rows = rows * extent
    flat = (rows, ty.shape[ty.ndim - 1])
    flat_x = rewriter.emit(relax.op.reshape(x, flat))
    y = rewriter.emit(relax.call_tir(function, [flat_x, *rest], relax.TensorType(flat, ty.dtype)))
    return relax.op.reshape(y, ty.shape)


def _in_a_block(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same with its body in a block, where TVM's search for reshapes looks for one."""
    root = s_tir.SBlock([], [], [], "root", kernel.body)
    return kernel.with_body(s_tir.SBlockRealize([], tirx.const(True, "bool"), root))


def _entries(mod: tvm.IRModule) -> list[str]:
    return [v.name_hint for v, func in mod.functions_items() if isinstance(func, relax.Function)]
