"""What follows the sum: bias, elementwise function, residual."""

from __future__ import annotations

import math
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


def finish(spec: MatmulSpec, total: Any, token: Any, row: Any, arguments: dict[str, Any]) -> None:
    """Emit ``y[token, row] = residual[token, row] + f(total + bias[row])``, computed in float32.

    Args:
        spec: says which of the three there are.
        total: the float32 sum.
        token: m.
        row: n.
        arguments: the kernel's buffers by name: "y", and "bias" and "residual" where the spec has them.
    """
    value = total
    if spec.has_bias:
        value = value + T.Cast("float32", arguments["bias"][row])
    value = activation(spec.activation_function, value)
    if spec.has_residual:
        value = value + T.Cast("float32", arguments["residual"][token, row])
    T.buffer_store(arguments["y"], T.Cast(spec.dtype, value), [token, row])


def finish_gated(
    spec: MatmulSpec, gate: Any, up: Any, token: Any, row: Any, arguments: dict[str, Any]
) -> None:
    """Emit ``y[token, row] = f(gate) * up`` of two neighbouring sums, computed in float32."""
    value = T.Cast(spec.dtype, gated_pair(spec, gate, up))
    T.buffer_store(arguments["y"], value, [token, row])


def gated_pair(spec: MatmulSpec, gate: Any, up: Any) -> Any:
    """f(gate) * up in float32, f the spec's ``output_gate``."""
    return activation(spec.output_gate, gate) * up
