"""Fuse what makes the input of a matmul into it: the norm before, or the gate of an MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.gates import find_gate
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.reference import dequantize_matmul
from awq_tvm.schedules.rule import Unserved, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target


@tvm.transform.module_pass(opt_level=0, name="FuseMatmulPrologue")
class FuseMatmulPrologue:
    """Let quantized linears normalise or gate their input themselves, where the target's kernels can.

    Before::

        x = rms_norm(h, norm)
        qkv = call_tir(dequantize_matmul, (x, qweight, scales, zeros))
        ...
        z = multiply(silu(gu[:, :K]), gu[:, K:])
        y = call_tir(dequantize_matmul1, (z, qweight, scales, zeros, residual))

    After::

        qkv = call_tir(dequantize_matmul, (h, qweight, scales, zeros, norm))
        ...
        y = call_tir(dequantize_matmul1, (gu, qweight, scales, zeros, residual))

    A kernel that quantizes its input reads it first anyway, on every thread's behalf.

    Needs: FuseDequantizeMatmul; RepackWeights, which knows no norm among a matmul's parameters. Does not fuse: a
    gate that others read too, a norm in another dtype or over other axes than the last.
    """

    def __init__(self, target: Target) -> None:
        """Take the target whose rules are asked."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        replacements: dict[relax.Var, Replacement] = {}
        for var, value in bindings:
            found = bindings.prim_func(value, ir_attrs.OP_DEQUANTIZE_MATMUL)
            if found is None:
                continue
            call, func = found
            spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
            prologue = _norm(bindings, call.args[1][0], spec) or _gate(bindings, call.args[1][0], spec)
            if prologue is not None and not isinstance(select(prologue[0], self.target), Unserved):
                replacements[var] = _fused(call, str(func.attrs[ir_attrs.LAYOUT]), *prologue)
        return rewrite(mod, "forward", replacements)


_Prologue = tuple[MatmulSpec, relax.Expr, tuple[relax.Expr, ...]]
"""The spec of the matmul with it, the new input, and what is read besides."""


def _norm(bindings: Bindings, x: relax.Expr, spec: MatmulSpec) -> _Prologue | None:
    norm = bindings.call(x, "relax.nn.rms_norm")
    if norm is None or x.ty.ndim != 2 or [int(axis) for axis in norm.attrs.axes] not in ([-1], [1]):
        return None
    source, weight = norm.args
    if {str(source.ty.dtype), str(weight.ty.dtype)} != {spec.dtype}:
        return None
    return replace(spec, rms_norm_eps=float(norm.attrs.epsilon)), source, (weight,)


def _gate(bindings: Bindings, x: relax.Expr, spec: MatmulSpec) -> _Prologue | None:
    found = find_gate(bindings, x) if bindings.uses[x] == 1 else None
    return None if found is None else (replace(spec, gate=found[0]), found[1], ())


def _fused(
    call: relax.Call, layout: str, spec: MatmulSpec, x: relax.Expr, more: tuple[relax.Expr, ...]
) -> Replacement:
    arrays = len(LAYOUTS[layout].arrays(spec))
    _, *rest = call.args[1]
    arguments = [x, *rest[:arrays], *more, *rest[arrays:]]

    def replacement(rewriter: Rewriter) -> relax.Expr:
        name = rewriter.add_func(dequantize_matmul(spec, LAYOUTS[layout]), "dequantize_matmul")
        return relax.call_tir(name, arguments, call.ty)

    return replacement
