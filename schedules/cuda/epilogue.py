"""What follows the sums of neighbouring outputs of a token, with operands of up to 16 bytes."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.epilogue import activation, finish, finish_gated, gated_pair
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

MOST = 8
"""Outputs of 16 bytes of y."""


def finish_together(
    spec: MatmulSpec, totals: Any, count: int, token: Any, row: Any, arguments: dict[str, Any]
) -> None:
    """``finish`` for some neighbouring sums, for which bias, residual and y are one load or store each.

    Args:
        spec: says what follows; of 16-bit outputs.
        totals: ``count`` float32 sums in registers.
        count: 1, 2, 4 or 8, a divisor of N.
        token: m.
        row: the first n, a multiple of ``count``.
        arguments: the kernel's buffers by name: "y", and "bias" and "residual" where the spec has them.
    """
    if spec.output_gate is not None:
        _finish_gated(spec, totals, count, token, row, arguments)
        return
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
    _store(spec, values, count, token, row, arguments)


def _store(
    spec: MatmulSpec, values: Any, count: int, token: Any, row: Any, arguments: dict[str, Any]
) -> None:
    """Emit the rounding and the one store of an even number of neighbouring outputs."""
    words = local("outputs", count // 2, "uint32")
    for i in range(count // 2):
        ptx.pack(words[i], values[2 * i], values[2 * i + 1], spec.dtype)
    ptx.store(arguments["y"].ptr_to([token, row]), [words[i] for i in range(count // 2)])


def _finish_gated(
    spec: MatmulSpec, totals: Any, count: int, token: Any, row: Any, arguments: dict[str, Any]
) -> None:
    """``finish_together`` where two sums are an output: one store of half as many."""
    half = count // 2
    if half == 1:
        finish_gated(spec, totals[0], totals[1], token, row // 2, arguments)
        return
    values = local("values", half, "float32")
    for i in range(half):
        T.buffer_store(values, gated_pair(spec, totals[2 * i], totals[2 * i + 1]), [i])
    _store(spec, values, half, token, row // 2, arguments)


def _read(buffer: Any, place: list[Any], count: int) -> Any:
    """Emit one load of ``buffer[..., place[-1] + i]`` and return its registers."""
    found = local(buffer.name, count, buffer.dtype)
    with T.vectorized(0, count) as j:
        T.buffer_store(found, buffer[*place[:-1], place[-1] + j], [j])
    return found
