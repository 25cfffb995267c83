"""What happens to x on its way into a kernel: nothing, the norm before a linear, or the gate of an MLP.

The sum over a row that a norm takes is a pass of its own. Its outcome is one factor of the row, which a kernel that
quantizes x puts into the scales instead of into the values.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.epilogue import ACTIVATION_FUNCTIONS
from awq_tvm.schedules.cpu.vectors import Buffer, Expression, Register, fma, horizontal_sum, lanes, splat
from awq_tvm.schedules.spec import MatmulSpec


@dataclass(frozen=True)
class Input:
    """x of a kernel.

    Args:
        spec: the linear.
        x: [M, K] float32, [M, 2 K] with a gate.
        norm: [K] float32, the norm's weight, or None.
    """

    spec: MatmulSpec
    x: Buffer
    norm: Buffer | None = None

    def row(self, row: Expression, width: int) -> Row:
        """What is to be read of one row, ``width`` lanes at a time; adds the statements that must come first."""
        if self.spec.gate is not None:
            return _GatedRow(self, row, width, self.spec.gate)
        return Row(self, row, width) if self.norm is None else _NormalisedRow(self, row, width, self.norm)


class Row:
    """A row of x that is read twice, group by group: its values, but for a factor that all of them share.

    Args:
        source: the input.
        row: which.
        width: lanes of a step.
    """

    def __init__(self, source: Input, row: Expression, width: int) -> None:
        self._source, self._row, self._width = source, row, width

    def first(self, start: Expression, step: Expression) -> Expression:
        """The values from k = start + step * width on, read for the first time; start is that of a group."""
        return self._load(start + step * self._width)

    def again(self, start: Expression, step: Expression) -> Expression:
        """The same, after the whole group was read by ``first``."""
        return self.first(start, step)

    def scaled(self, value: Expression) -> Expression:
        """A scalar times the factor of the row."""
        return value

    def _load(self, column: Expression) -> Expression:
        return self._source.x[self._row, lanes(column, self._width)]


class _NormalisedRow(Row):
    """norm[k] * x[k], and 1 / sqrt(mean(x^2) + eps) for the factor."""

    def __init__(self, source: Input, row: Expression, width: int, norm: Buffer) -> None:
        super().__init__(source, row, width)
        self._norm = norm
        k = source.spec.in_features
        squares = Register(splat(0.0, count=width), lanes=width)
        with T.serial(0, k // width) as step:
            value = T.bind(self._load(step * width))
            squares.set(fma(value, value, squares.get()))
        mean = horizontal_sum(squares.get(), width) * T.float32(1 / k)
        root = T.call_llvm_pure_intrin("float32", "llvm.sqrt", mean + T.float32(source.spec.rms_norm_eps))
        self._factor = T.bind(T.float32(1) / root)

    def first(self, start: Expression, step: Expression) -> Expression:
        """See ``Row.first``."""
        column = start + step * self._width
        return self._load(column) * self._norm[lanes(column, self._width)]

    def scaled(self, value: Expression) -> Expression:
        """See ``Row.scaled``."""
        return value * self._factor


class _GatedRow(Row):
    """gate(x[k]) * x[K + k], computed once and kept until the group is through."""

    def __init__(self, source: Input, row: Expression, width: int, gate: str) -> None:
        super().__init__(source, row, width)
        self._function = ACTIVATION_FUNCTIONS[gate]
        self._kept = T.alloc_buffer((source.spec.group_size,), "float32")

    def first(self, start: Expression, step: Expression) -> Expression:
        """See ``Row.first``."""
        column = start + step * self._width
        gate = self._function(T.bind(self._load(column)))
        value = T.bind(gate * self._load(self._source.spec.in_features + column))
        T.buffer_store(self._kept, value, [lanes(step * self._width, self._width)])
        return value

    def again(self, start: Expression, step: Expression) -> Expression:
        """See ``Row.again``."""
        return self._kept[lanes(step * self._width, self._width)]
