"""Quantized activations as matrix instructions take them: two rows side by side, a group of all rows in one piece."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.quantized_rows import QuantizedRows
from awq_tvm.schedules.cpu.vectors import Buffer, Expression, lanes, take
from awq_tvm.schedules.spec import MatmulSpec

STEP = 8
"""k that an instruction takes."""


class PairedRows(QuantizedRows):
    """``QuantizedRows`` by groups: [G, capacity / 2, group_size / 8, 2, 8], where 16 bytes hold eight k of two rows.

    Args:
        spec: the linear.
        planes: int8 digits per value, 1 to 3.
        capacity: rows, an even number.

    Attributes:
        capacity: rows.
        scales: float32 [G, capacity].
        sums: float32 [G, capacity] for each plane.
    """

    def __init__(self, spec: MatmulSpec, planes: int, capacity: int) -> None:
        self.spec, self.capacity = spec, capacity
        by_group = (spec.groups, capacity)
        self.planes = [T.alloc_buffer((capacity * spec.in_features,), "int8") for _ in range(planes)]
        self.scales = T.alloc_buffer(by_group, "float32")
        self.sums = [T.alloc_buffer(by_group, "float32") for _ in range(planes)]

    def pair(self, plane: int, row: Expression, group: Expression, step: Expression) -> Expression:
        """Eight digits of an even row, then of the next, as int8x16, at a step within a group."""
        start = self._start(row, group) + 2 * STEP * step
        return self.planes[plane][lanes(start, 2 * STEP)]

    def _start(self, even_row: Expression, group: Expression) -> Expression:
        return (group * self.capacity + even_row) * self.spec.group_size

    def _keep(self, buffer: Buffer, value: Expression, row: Expression, group: Expression) -> None:
        T.buffer_store(buffer, value, [group, row])

    def _store(
        self, plane: int, digit: Expression, row: Expression, group: Expression, k: Expression, width: int
    ) -> None:
        odd = T.truncmod(row, 2)
        start = self._start(row - odd, group) + 2 * k + STEP * odd
        narrow = T.bind(T.cast(digit, f"int8x{width}"))
        for part in range(0, width, STEP):
            eight = take(narrow, list(range(part, part + STEP)))
            T.buffer_store(self.planes[plane], eight, [lanes(start + 2 * part, STEP)])
