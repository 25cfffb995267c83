"""What a quantized linear computes, written plainly: the meaning that every fused kernel must keep.

These PrimFuncs are what a model is exported with and what fusion produces; a schedule replaces their bodies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import te, tirx

from awq_tvm import ir_attrs
from awq_tvm.schedules.frame import OPAQUE, attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from awq_tvm.schedules.layout import DenseLayout, Layout
    from awq_tvm.schedules.spec import DenseSpec, MatmulSpec


def dequantize(spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    """W[N, K] of ``spec.dtype`` from the layout's arrays.

    Parameters of the PrimFunc: the layout's arrays, then W.
    """
    arrays = _placeholders(spec, layout)
    weight = _weight(spec, layout, arrays)
    return _mark(te.create_prim_func([*arrays, weight]), ir_attrs.OP_DEQUANTIZE, spec, layout)


def dequantize_matmul(spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    """The whole of ``spec``, accumulated in float32.

    Parameters of the PrimFunc: x, the layout's arrays, norm, bias and residual if any, y.
    """
    m, n, k = te.var("m", "int64"), _extent(spec.out_features), _extent(spec.in_features)
    x = te.placeholder((m, _extent(spec.x_features)), spec.dtype, "x")
    norm = te.placeholder((k,), spec.dtype, "norm") if spec.rms_norm_eps is not None else None
    prepared = _prologue(spec, x, norm)
    arrays = _placeholders(spec, layout)
    weight = _weight(spec, layout, arrays)
    axis = te.reduce_axis((_extent(0), k), "k")
    product = te.compute(
        (m, n),
        lambda i, j: te.sum(
            prepared[i, axis].astype("float32") * weight[j, axis].astype("float32"), axis=axis
        ),
        "matmul",
    )
    parameters = [x, *arrays] if norm is None else [x, *arrays, norm]
    bias = te.placeholder((n,), spec.dtype, "bias") if spec.has_bias else None
    residual = te.placeholder((m, n), spec.dtype, "residual") if spec.has_residual else None
    parameters += [extra for extra in (bias, residual) if extra is not None]

    def epilogue(i: Any, j: Any) -> Any:
        if spec.output_gate is not None:
            gate, up = product[i, 2 * j], product[i, 2 * j + 1]
            return (_apply(spec.output_gate, gate) * up).astype(spec.dtype)
        value = product[i, j]
        if bias is not None:
            value = value + bias[j].astype("float32")
        value = _apply(spec.activation_function, value)
        if residual is not None:
            value = value + residual[i, j].astype("float32")
        return value.astype(spec.dtype)

    y = te.compute((m, _extent(spec.y_features)), epilogue, "epilogue")
    return _mark(te.create_prim_func([*parameters, y]), ir_attrs.OP_DEQUANTIZE_MATMUL, spec, layout)


def _prologue(spec: MatmulSpec, x: Any, norm: Any) -> Any:
    """What is multiplied with the weight, [M, K]."""
    m, k = x.shape[0], _extent(spec.in_features)
    if spec.gate is not None:
        return te.compute(
            (m, k),
            lambda i, j: (
                _apply(spec.gate, x[i, j].astype("float32")) * x[i, j + k].astype("float32")
            ).astype(spec.dtype),
            "gated",
        )
    if norm is None:
        return x
    axis = te.reduce_axis((_extent(0), k), "k")
    squares = te.compute(
        (m,),
        lambda i: te.sum(x[i, axis].astype("float32") * x[i, axis].astype("float32"), axis=axis),
        "squares",
    )
    eps = tirx.const(spec.rms_norm_eps, "float32")
    return te.compute(
        (m, k),
        lambda i, j: (
            x[i, j].astype("float32")
            / tirx.sqrt(squares[i] / spec.in_features + eps)
            * norm[j].astype("float32")
        ).astype(spec.dtype),
        "normalised",
    )


def dense_matmul(spec: DenseSpec, layout: DenseLayout | None = None) -> tirx.PrimFunc:
    """The whole of ``spec``, accumulated in float32.

    Parameters of the PrimFunc: x, W as [N, K] or in the layout, y.
    """
    m, n, k = te.var("m", "int64"), _extent(spec.out_features), _extent(spec.in_features)
    x = te.placeholder((m, k), spec.dtype, "x")
    weight, element = _dense_weight(spec, layout)
    axis = te.reduce_axis((_extent(0), k), "k")
    product = te.compute(
        (m, n),
        lambda i, j: te.sum(x[i, axis].astype("float32") * element(j, axis).astype("float32"), axis=axis),
        "matmul",
    )
    y = product
    if spec.dtype != "float32":
        y = te.compute((m, n), lambda i, j: product[i, j].astype(spec.dtype), "cast")
    return _mark_dense(te.create_prim_func([x, weight, y]), ir_attrs.OP_DENSE_MATMUL, spec, layout)


def dense_take(spec: DenseSpec, layout: DenseLayout) -> tirx.PrimFunc:
    """Rows of an unquantized embedding in a layout: y[M, K] = W[indices[M], K], cast to ``spec.dtype``.

    Parameters of the PrimFunc: W in the layout, indices int32 [M], y.
    """
    m = te.var("m", "int64")
    weight, element = _dense_weight(spec, layout)
    indices = te.placeholder((m,), "int32", "indices")
    y = te.compute(
        (m, _extent(spec.in_features)),
        lambda i, k: element(indices[i].astype("int64"), k).astype(spec.dtype),
        "dense_take",
    )
    return _mark_dense(te.create_prim_func([weight, indices, y]), ir_attrs.OP_DENSE_TAKE, spec, layout)


def _dense_weight(spec: DenseSpec, layout: DenseLayout | None) -> tuple[Any, Callable[[Any, Any], Any]]:
    """W as a placeholder, and what its elements are."""
    if layout is None:
        shape = (_extent(spec.out_features), _extent(spec.in_features))
        weight = te.placeholder(shape, spec.weight_dtype, "weight")
        return weight, lambda n, k: weight[n, k]
    (array,) = layout.arrays(spec.in_features, spec.out_features, spec.weight_dtype)
    packed = te.placeholder(tuple(map(_extent, array.shape)), array.dtype, array.suffix)
    return packed, lambda n, k: layout.element(packed, n, k)


def _mark_dense(func: tirx.PrimFunc, op: str, spec: DenseSpec, layout: DenseLayout | None) -> tirx.PrimFunc:
    attrs = {"op_pattern": OPAQUE, ir_attrs.OP: op, ir_attrs.DENSE_SPEC: spec.to_json()}
    if layout is not None:
        attrs[ir_attrs.LAYOUT] = layout.name
    return func.without_attr("global_symbol").with_attrs(attrs)


def dequantize_take(spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    """Rows of a quantized embedding: y[M, K] = W[indices[M], K].

    Parameters of the PrimFunc: the layout's arrays, indices int32 [M], y.
    """
    m = te.var("m", "int64")
    arrays = _placeholders(spec, layout)
    indices = te.placeholder((m,), "int32", "indices")
    y = te.compute(
        (m, _extent(spec.in_features)),
        lambda i, k: _dequantized(spec, layout, arrays, indices[i].astype("int64"), k),
        "dequantize_take",
    )
    return _mark(te.create_prim_func([*arrays, indices, y]), ir_attrs.OP_DEQUANTIZE_TAKE, spec, layout)


def _extent(value: int) -> tirx.IntImm:
    # M is int64, and some of TVM's schedule steps refuse a buffer whose indices differ in width.
    return tirx.IntImm("int64", value)


def _placeholders(spec: MatmulSpec, layout: Layout) -> tuple[Any, ...]:
    return tuple(
        te.placeholder(tuple(map(_extent, array.shape)), array.dtype, array.suffix)
        for array in layout.arrays(spec)
    )


def _weight(spec: MatmulSpec, layout: Layout, arrays: tuple[Any, ...]) -> Any:
    shape = (_extent(spec.out_features), _extent(spec.in_features))
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
    return (
        value * 0.5 * (1.0 + tirx.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value * value * value)))
    )


def _mark(func: tirx.PrimFunc, op: str, spec: MatmulSpec, layout: Layout) -> tirx.PrimFunc:
    # A module holds many of these, so none may claim the symbol that TE gives each.
    return func.without_attr("global_symbol").with_attrs(attributes(op, spec, layout))
