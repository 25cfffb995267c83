"""Turn matmul with a transposed weight into one function that reads the weight as it is stored."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.reference import dense_matmul
from awq_tvm.schedules.spec import DenseSpec


@tvm.transform.module_pass(opt_level=0, name="FoldTransposeMatmul")
class FoldTransposeMatmul:
    """Fold permute_dims, and a cast of the weight, into the matmul.

    Before::

        y = matmul(x, permute_dims(astype(w, "float32")))      # w: float16 [N, K]

    After::

        y = call_tir(dense_matmul, (x, w))

    Needs: nothing; CombineParallelLinears is to run before. Does not fold: a matmul of more than two
    dimensions, or of two activations.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        replacements: dict[relax.Var, Replacement] = {}
        for var, value in bindings:
            matmul = bindings.call(value, "relax.matmul")
            if matmul is None:
                continue
            transposed = bindings.call(matmul.args[1], "relax.permute_dims")
            if transposed is None or [int(a) for a in transposed.attrs.axes or (1, 0)] != [1, 0]:
                continue
            weight = transposed.args[0]
            cast = bindings.call(weight, "relax.astype")
            if cast is not None:
                weight = cast.args[0]
            if matmul.args[0].ty.ndim == 2 and _is_weight(bindings, weight):
                replacements[var] = _fold(matmul, weight)
        return rewrite(mod, "forward", replacements)


def _is_weight(bindings: Bindings, expr: relax.Expr) -> bool:
    """Whether expr is a matrix of constant size that is a parameter or made of parameters by dequantization."""
    if expr.ty.ndim != 2 or not all(isinstance(extent, tirx.IntImm) for extent in expr.ty.shape):
        return False
    return bindings.is_parameter(expr) or bindings.prim_func(expr, ir_attrs.OP_DEQUANTIZE) is not None


def _fold(matmul: relax.Call, weight: relax.Expr) -> Replacement:
    def replacement(rewriter: Rewriter) -> relax.Expr:
        out_features, in_features = (int(extent) for extent in weight.ty.shape)
        spec = DenseSpec(in_features, out_features, str(weight.ty.dtype), str(matmul.ty.dtype))
        func = rewriter.add_func(dense_matmul(spec), "dense_matmul")
        return relax.call_tir(func, [matmul.args[0], weight], matmul.ty)

    return replacement
