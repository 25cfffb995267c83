"""What follows the sums of neighbouring outputs of a token, with operands of up to 16 bytes."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.epilogue import activation, finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

MOST = 8
"""Outputs of 16 bytes of y."""


def finish_together(
    spec: MatmulSpec, totals: Any, count: int, token: Any, row: Any, arguments: dict[str, Any]
) -> None:
    """``finish`` for some neighbouring outputs, for which bias, residual and y are one load or store each.

    Args:
        spec: says what follows; of 16-bit outputs.
        totals: ``count`` float32 sums in registers.
        count: 1, 2, 4 or 8, a divisor of N.
        token: m.
        row: the first n, a multiple of ``count``.
        arguments: the kernel's buffers by name: "y", and "bias" and "residual" where the spec has them.
    """
    if count == 1:
        finish(spec, totals[0], token, row, arguments)
        return
    bias = _read(arguments["bias"], [row], count) if spec.has_bias else None
    residual = _read(arguments["residual"], [token, row], count) if spec.has_residual else None
    values = local("values", count, "float32")
    for i in range(count):
        value = totals[i]
        if bias is not None:
            value = value + T.Cast("float32", bias[i])
        value = activation(spec.activation_function, value)
        if residual is not None:
            value = value + T.Cast("float32", residual[i])
        T.buffer_store(values, value, [i])
    words = local("outputs", count // 2, "uint32")
    for i in range(count // 2):
        ptx.pack(words[i], values[2 * i], values[2 * i + 1], spec.dtype)
    ptx.store(arguments["y"].ptr_to([token, row]), [words[i] for i in range(count // 2)])


def _read(buffer: Any, place: list[Any], count: int) -> Any:
    """Emit one load of ``buffer[..., place[-1] + i]`` and return its registers."""
    found = local(buffer.name, count, buffer.dtype)
    with T.vectorized(0, count) as j:
        T.buffer_store(found, buffer[*place[:-1], place[-1] + j], [j])
    return found
