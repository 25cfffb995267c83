"""The gate of an MLP as models are exported: f(gu[:, :K]) * gu[:, K:]."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from awq_tvm.passes.fuse_dequantize_matmul import ACTIVATION_FUNCTIONS
from awq_tvm.passes.rewrite import Bindings


def find_gate(bindings: Bindings, x: relax.Expr) -> tuple[str, relax.Expr] | None:
    """The name of f, as ``MatmulSpec.gate`` has it, and gu, where x [M, K] is such a product."""
    product = bindings.call(x, "relax.multiply")
    if product is None or product.ty.ndim != 2 or not isinstance(product.ty.shape[1], tvm.tirx.IntImm):
        return None
    k = int(product.ty.shape[1])
    for gate, up in (product.args, reversed(product.args)):
        value: Any = bindings.values.get(gate)
        name = value.op.name if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""
        if name not in ACTIVATION_FUNCTIONS:
            continue
        source, other = _half(bindings, value.args[0], 0, k), _half(bindings, up, k, 2 * k)
        if source is not None and other is not None and source.same_as(other):
            return ACTIVATION_FUNCTIONS[name], source
    return None


def _half(bindings: Bindings, x: relax.Expr, begin: int, end: int) -> relax.Expr | None:
    """What x is the columns begin .. end - 1 of, where there are twice as many."""
    part = bindings.call(x, "relax.strided_slice")
    if part is None:
        return None
    source, axes, begins, ends = part.args[:4]
    found = [[int(value.value) for value in fields] for fields in (axes, begins, ends)]
    if found != [[1], [begin], [end]] or len(part.args) > 4 or source.ty.ndim != 2:
        return None
    return source if int(source.ty.shape[1]) == 2 * (end - begin) else None
