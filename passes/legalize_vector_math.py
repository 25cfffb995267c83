"""Lower elementwise functions of float32 to polynomials that vectorise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te

from awq_tvm.schedules import vector_math

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relax.nn.silu": vector_math.silu,
    "relax.nn.gelu": vector_math.gelu,
    "relax.nn.gelu_tanh": vector_math.gelu_tanh,
    "relax.sigmoid": vector_math.sigmoid,
    "relax.tanh": vector_math.tanh,
    "relax.exp": vector_math.exp,
    "relax.erf": vector_math.erf,
}


@tvm.transform.module_pass(opt_level=0, name="LegalizeVectorMath")
class LegalizeVectorMath:
    """LegalizeOps with our own exp, silu, gelu and the like, for CPUs.

    Before::

        y = nn.silu(x)

    After, where TVM's own lowering would call expf one lane at a time::

        y = call_tir(silu, (x,))      # a polynomial, adds and multiplies only

    Needs: the fusing passes, which recognise the operators. Leaves to TVM: other dtypes and other operators.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Lower all operators of all functions."""
        return relax.transform.LegalizeOps({name: _legalize(name) for name in _FUNCTIONS})(mod)


def _legalize(name: str) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    function, short = _FUNCTIONS[name], name.rpartition(".")[2]

    def compute(x: Any) -> Any:
        return te.compute(x.shape, lambda *index: function(x(*index)), short)

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if str(call.ty.dtype) != "float32":
            return tvm.ir.Op.get(name).get_attr("FLegalize")(builder, call)
        return builder.call_te(compute, call.args[0], primfunc_name_hint=short)

    return legalize
