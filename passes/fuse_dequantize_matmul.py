"""Fuse the dequantization of a weight, and what follows the product, into the matmul."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.reference import dequantize_matmul
from awq_tvm.schedules.spec import MatmulSpec

ACTIVATION_FUNCTIONS = {
    "relax.nn.silu": "silu",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.nn.relu": "relu",
}


@tvm.transform.module_pass(opt_level=0, name="FuseDequantizeMatmul")
class FuseDequantizeMatmul:
    """One PrimFunc per quantized linear, with its bias, activation function and residual.

    Before::

        w = call_tir(dequantize, (qweight, scales, zeros))
        y = call_tir(dense_matmul, (x, w))
        z = add(silu(add(y, bias)), residual)

    After::

        z = call_tir(dequantize_matmul, (x, qweight, scales, zeros, bias, residual))

    Needs: FoldTransposeMatmul. Does not fuse: a step of the epilogue whose input has another use; a residual
    of another shape.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        replacements: dict[relax.Var, Replacement] = {}
        for var, _ in bindings:
            chain = _match(bindings, var, replacements.keys())
            if chain is not None:
                replacements[chain.result] = chain.replacement
        return rewrite(mod, "forward", replacements)


@dataclass(frozen=True)
class _Chain:
    """A quantized matmul and the part of its epilogue found so far."""

    x: relax.Expr
    weights: tuple[relax.Expr, ...]
    spec: MatmulSpec
    layout: str
    result: relax.Var
    bias: relax.Expr | None = None
    residual: relax.Expr | None = None

    def replacement(self, rewriter: Rewriter) -> relax.Expr:
        func = dequantize_matmul(self.spec, LAYOUTS[self.layout])
        extras = [extra for extra in (self.bias, self.residual) if extra is not None]
        name = rewriter.add_func(func, "dequantize_matmul")
        return relax.call_tir(name, [self.x, *self.weights, *extras], self.result.ty)


def _match(bindings: Bindings, var: relax.Var, taken: Set[relax.Var]) -> _Chain | None:
    """The chain that begins at var; it ends before a step that an earlier chain has taken as its own."""
    product = bindings.prim_func(var, ir_attrs.OP_DENSE_MATMUL)
    if product is None:
        return None
    x, weight = product[0].args[1]
    found = bindings.prim_func(weight, ir_attrs.OP_DEQUANTIZE)
    if found is None:
        return None
    call, func = found
    spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
    chain = _Chain(x, tuple(call.args[1]), spec, str(func.attrs[ir_attrs.LAYOUT]), var)
    while (longer := _extend(bindings, chain)) is not None and longer.result not in taken:
        chain = longer
    return chain


def _extend(bindings: Bindings, chain: _Chain) -> _Chain | None:
    """The chain with the step that uses its result, if that is the only use and the epilogue has room for it."""
    users = bindings.users(chain.result)
    if bindings.uses[chain.result] != 1 or not users or chain.spec.has_residual:
        return None
    ((user, value),) = users
    if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
        return None
    if value.op.name in ACTIVATION_FUNCTIONS and chain.spec.activation_function is None:
        spec = replace(chain.spec, activation_function=ACTIVATION_FUNCTIONS[value.op.name])
        return replace(chain, spec=spec, result=user)
    if value.op.name != "relax.add":
        return None
    other = value.args[1] if value.args[0].same_as(chain.result) else value.args[0]
    if other.ty.ndim == 1 and not chain.spec.has_bias and chain.spec.activation_function is None:
        return replace(chain, spec=replace(chain.spec, has_bias=True), bias=other, result=user)
    if other.ty.ndim == 2 and other.ty == chain.result.ty:
        return replace(chain, spec=replace(chain.spec, has_residual=True), residual=other, result=user)
    return None
