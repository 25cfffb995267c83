"""What a quantized linear computes, written plainly: the meaning that every fused kernel must keep.

These PrimFuncs are what a model is exported with and what fusion produces; a schedule replaces their bodies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import te, tirx

from awq_tvm import ir_attrs

if TYPE_CHECKING:
    from awq_tvm.schedules.layout import Layout
    from awq_tvm.schedules.spec import MatmulSpec

# TVM's operator fusion must leave these functions to our own passes.
_OPAQUE = 8


def dequantize(spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    """W[N, K] of ``spec.dtype`` from the layout's arrays.

    Parameters of the PrimFunc: the layout's arrays, then W.
    """
    arrays = _placeholders(spec, layout)
    weight = _weight(spec, layout, arrays)
    return _mark(te.create_prim_func([*arrays, weight]), ir_attrs.OP_DEQUANTIZE, spec, layout)


def dequantize_matmul(spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    """The whole of ``spec``, accumulated in float32.

    Parameters of the PrimFunc: x, the layout's arrays, bias and residual if any, y.
    """
    m, n, k = te.var("m", "int64"), spec.out_features, spec.in_features
    x = te.placeholder((m, k), spec.dtype, "x")
    arrays = _placeholders(spec, layout)
    weight = _weight(spec, layout, arrays)
    axis = te.reduce_axis((0, k), "k")
    product = te.compute(
        (m, n),
        lambda i, j: te.sum(x[i, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis),
        "matmul",
    )
    parameters = [x, *arrays]
    bias = te.placeholder((n,), spec.dtype, "bias") if spec.has_bias else None
    residual = te.placeholder((m, n), spec.dtype, "residual") if spec.has_residual else None
    parameters += [extra for extra in (bias, residual) if extra is not None]

    def epilogue(i: Any, j: Any) -> Any:
        value = product[i, j]
        if bias is not None:
            value = value + bias[j].astype("float32")
        value = _apply(spec.activation_function, value)
        if residual is not None:
            value = value + residual[i, j].astype("float32")
        return value.astype(spec.dtype)

    y = te.compute((m, n), epilogue, "epilogue")
    return _mark(te.create_prim_func([*parameters, y]), ir_attrs.OP_DEQUANTIZE_MATMUL, spec, layout)


def dense_matmul(in_features: int, out_features: int, weight_dtype: str, dtype: str) -> tirx.PrimFunc:
    """y[M, N] = x[M, K] @ W[N, K].T of an unquantized weight, accumulated in float32.

    Parameters of the PrimFunc: x of ``dtype``, W of ``weight_dtype``, y of ``dtype``.
    """
    m, n, k = te.var("m", "int64"), out_features, in_features
    x = te.placeholder((m, k), dtype, "x")
    weight = te.placeholder((n, k), weight_dtype, "weight")
    axis = te.reduce_axis((0, k), "k")
    product = te.compute(
        (m, n),
        lambda i, j: te.sum(x[i, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis),
        "matmul",
    )
    y = product if dtype == "float32" else te.compute((m, n), lambda i, j: product[i, j].astype(dtype), "cast")
    func = te.create_prim_func([x, weight, y])
    attrs = {"op_pattern": _OPAQUE, ir_attrs.OP: ir_attrs.OP_DENSE_MATMUL}
    return func.without_attr("global_symbol").with_attrs(attrs)


def dequantize_take(spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    """Rows of a quantized embedding: y[M, K] = W[indices[M], K].

    Parameters of the PrimFunc: the layout's arrays, indices int32 [M], y.
    """
    m = te.var("m", "int64")
    arrays = _placeholders(spec, layout)
    indices = te.placeholder((m,), "int32", "indices")
    y = te.compute(
        (m, spec.in_features),
        lambda i, k: _dequantized(spec, layout, arrays, indices[i].astype("int64"), k),
        "dequantize_take",
    )
    return _mark(te.create_prim_func([*arrays, indices, y]), ir_attrs.OP_DEQUANTIZE_TAKE, spec, layout)


def _placeholders(spec: MatmulSpec, layout: Layout) -> tuple[Any, ...]:
    return tuple(te.placeholder(array.shape, array.dtype, array.suffix) for array in layout.arrays(spec))


def _weight(spec: MatmulSpec, layout: Layout, arrays: tuple[Any, ...]) -> Any:
    shape = (spec.out_features, spec.in_features)
    return te.compute(shape, lambda n, k: _dequantized(spec, layout, arrays, n, k), "dequantize")


def _dequantized(spec: MatmulSpec, layout: Layout, arrays: tuple[Any, ...], n: Any, k: Any) -> Any:
    code, scale, zero = layout.elements(spec, arrays, n, k)
    # Codes and zero points are small integers, so their difference is exact in every float dtype.
    return ((code.astype("float32") - zero.astype("float32")) * scale.astype("float32")).astype(spec.dtype)


def _apply(activation_function: str | None, value: Any) -> Any:
    if activation_function is None:
        return value
    if activation_function == "relu":
        return te.max(value, tirx.const(0.0, "float32"))
    if activation_function == "silu":
        return value * tirx.sigmoid(value)
    if activation_function == "gelu":
        return value * 0.5 * (1.0 + tirx.erf(value * math.sqrt(0.5)))
    return value * 0.5 * (1.0 + tirx.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value * value * value)))


def _mark(func: tirx.PrimFunc, op: str, spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    # A module holds many of these, so none may claim the symbol that TE gives each.
    return func.without_attr("global_symbol").with_attrs(
        {
            "op_pattern": _OPAQUE,
            ir_attrs.OP: op,
            ir_attrs.BITS: spec.bits,
            ir_attrs.GROUP_SIZE: spec.group_size,
            ir_attrs.LAYOUT: layout.name,
            ir_attrs.MATMUL_SPEC: spec.to_json(),
        }
    )
