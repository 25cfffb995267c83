"""Dequantize the looked-up rows of a quantized embedding, not the whole table."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.reference import dequantize_take
from awq_tvm.schedules.spec import MatmulSpec


@tvm.transform.module_pass(opt_level=0, name="FuseDequantizeTake")
class FuseDequantizeTake:
    """One PrimFunc per lookup in a quantized table.

    Before::

        w = call_tir(dequantize, (qweight, scales, zeros))
        y = take(w, indices, axis=0)

    After::

        y = call_tir(dequantize_take, (qweight, scales, zeros, indices))

    Needs: nothing. Does not fuse: a take along another axis, or with indices that are not int32 [M].
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        replacements: dict[relax.Var, Replacement] = {}
        for var, value in bindings:
            take = bindings.call(value, "relax.take")
            if take is None:
                continue
            found = bindings.prim_func(take.args[0], ir_attrs.OP_DEQUANTIZE)
            if found is None:
                continue
            indices = take.args[1]
            if int(take.attrs.axis) == 0 and indices.ty.ndim == 1 and str(indices.ty.dtype) == "int32":
                replacements[var] = _fuse(found, take)
        return rewrite(mod, "forward", replacements)


def _fuse(found: Any, take: relax.Call) -> Replacement:
    call, func = found
    spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
    layout = LAYOUTS[str(func.attrs[ir_attrs.LAYOUT])]

    def replacement(rewriter: Rewriter) -> relax.Expr:
        name = rewriter.add_func(dequantize_take(spec, layout), "dequantize_take")
        return relax.call_tir(name, [*call.args[1], take.args[1]], take.ty)

    return replacement
