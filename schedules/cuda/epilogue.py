"""What follows neighbouring sums of a token, with operands of up to 16 bytes."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.epilogue import finish, output
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
    together = spec.sums_per_output
    outputs = count // together
    sums = [[totals[at + i] for i in range(together)] for at in range(0, count, together)]
    column = row // together
    if outputs == 1:
        finish(spec, sums[0], token, column, arguments)
        return
    bias = _read(arguments["bias"], [column], outputs) if spec.has_bias else None
    residual = _read(arguments["residual"], [token, column], outputs) if spec.has_residual else None
    values = local("values", outputs, "float32")
    for i in range(outputs):
        added = (None if operand is None else operand[i] for operand in (bias, residual))
        T.buffer_store(values, output(spec, sums[i], *added), [i])
    words = local("outputs", outputs // 2, "uint32")
    for i in range(outputs // 2):
        ptx.pack(words[i], values[2 * i], values[2 * i + 1], spec.dtype)
    ptx.store(arguments["y"].ptr_to([token, column]), [words[i] for i in range(outputs // 2)])


def _read(buffer: Any, place: list[Any], count: int) -> Any:
    """Emit one load of ``buffer[..., place[-1] + i]`` and return its registers."""
    found = local(buffer.name, count, buffer.dtype)
    with T.vectorized(0, count) as j:
        T.buffer_store(found, buffer[*place[:-1], place[-1] + j], [j])
    return found
