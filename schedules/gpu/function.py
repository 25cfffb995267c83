"""The function around the kernels of one quantized linear: its parameters, named, and a kernel for each M."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.frame import by_rows, scheduled_attributes
from awq_tvm.schedules.layout import Layout
from awq_tvm.schedules.spec import MatmulSpec

Emit = Callable[[dict[str, Any], Any], None]
"""Emits one kernel, given the buffers by name and M."""


def matmul_function(
    spec: MatmulSpec, layout: Layout, rule: str, kernels_up_to: dict[int, Emit], otherwise: Emit
) -> Any:
    """A scheduled PrimFunc for every M >= 1, parameters in the order that ``MatmulSpec`` states.

    Args:
        spec: the linear.
        layout: of its weight.
        rule: the name of the rule, for ``ir_attrs.SCHEDULE``.
        kernels_up_to: kernels by the largest M they serve, in rising order.
        otherwise: the kernel for larger M.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dequantize_matmul")
        T.func_attr({"tirx.noalias": True, **scheduled_attributes(spec, layout, rule)})
        tokens = IRBuilder.name("m", T.int64())
        arguments = _arguments(spec, layout, tokens)
        emits = [(limit, partial(emit, arguments, tokens)) for limit, emit in kernels_up_to.items()]
        by_rows(tokens, emits, partial(otherwise, arguments, tokens))
    return builder.get()


def _arguments(spec: MatmulSpec, layout: Layout, tokens: Any) -> dict[str, Any]:
    """Declare the parameters and their buffers in order, named as in ``MatmulSpec`` and the layout."""
    shapes: list[tuple[str, tuple[Any, ...], str]] = [("x", (tokens, spec.in_features), spec.dtype)]
    shapes += [(array.suffix, array.shape, array.dtype) for array in layout.arrays(spec)]
    if spec.has_bias:
        shapes.append(("bias", (spec.out_features,), spec.dtype))
    if spec.has_residual:
        shapes.append(("residual", (tokens, spec.out_features), spec.dtype))
    shapes.append(("y", (tokens, spec.y_features), spec.dtype))
    handles = [T.arg(f"{name}_handle", T.handle()) for name, _, _ in shapes]
    return {
        name: IRBuilder.name(name, T.match_buffer(handle, [_int64(d) for d in shape], dtype))
        for handle, (name, shape, dtype) in zip(handles, shapes, strict=True)
    }


def _int64(extent: Any) -> Any:
    """Shapes are int64, as Relax has them."""
    return T.int64(extent) if isinstance(extent, int) else extent
