"""What follows the sums: bias, elementwise function and residual, or the gate of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.spec import MatmulSpec


def activation(function: str | None, value: Any) -> Any:
    """f(value) in float32; ``function`` is None or one of ``spec.LEGAL_ACTIVATION_FUNCTIONS``."""
    one, half = T.float32(1), T.float32(0.5)
    if function == "silu":
        return value / (one + T.exp(-value))
    if function == "gelu":
        return half * value * (one + T.erf(value * T.float32(math.sqrt(0.5))))
    if function == "gelu_tanh":
        inner = T.float32(math.sqrt(2 / math.pi)) * (value + T.float32(0.044715) * value * value * value)
        return half * value * (one + T.tanh(inner))
    if function == "relu":
        return T.max(value, T.float32(0))
    return value


def output(spec: MatmulSpec, sums: Sequence[Any], bias: Any = None, residual: Any = None) -> Any:
    """What an output is before it is rounded, in float32.

    Args:
        spec: says what follows the sums.
        sums: ``spec.sums_per_output`` neighbouring ones.
        bias: of the output, where the spec has one.
        residual: likewise.
    """
    if spec.output_gate is not None:
        gate, up = sums
        return activation(spec.output_gate, gate) * up
    (value,) = sums
    if bias is not None:
        value = value + T.Cast("float32", bias)
    value = activation(spec.activation_function, value)
    if residual is not None:
        value = value + T.Cast("float32", residual)
    return value


def finish(spec: MatmulSpec, sums: Sequence[Any], token: Any, row: Any, arguments: dict[str, Any]) -> None:
    """Emit the store of an output.

    Args:
        spec: says what follows the sums.
        sums: see ``output``.
        token: m.
        row: the output's column of y.
        arguments: the kernel's buffers by name: "y", and "bias" and "residual" where the spec has them.
    """
    bias = arguments["bias"][row] if spec.has_bias else None
    residual = arguments["residual"][token, row] if spec.has_residual else None
    T.buffer_store(arguments["y"], T.Cast(spec.dtype, output(spec, sums, bias, residual)), [token, row])
