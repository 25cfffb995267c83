"""Activations as integers: x[m, k] = scale[m, g] * t[m, k], the digits of t stored as int8 planes.

One plane is what ``activations="int8"`` means: symmetric, per token and group, t = round(127 x / max|x|).
More planes hold balanced digits in base 256, t = 256 ** 2 * p0 + 256 * p1 + p2 for three, so that byte dot
products, which are exact, serve float activations as well: with three, x is off by at most 2 ** -24 of the
largest value in its group, which is half a unit in the last place of that value.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.prologue import Input
from awq_tvm.schedules.cpu.vectors import (
    Buffer,
    Expression,
    Register,
    horizontal_max,
    horizontal_sum,
    lanes,
    splat,
)
from awq_tvm.schedules.spec import MatmulSpec

DIGIT_BITS = 8
LARGEST = 127
ROW_PADDING = 64


class QuantizedRows:
    """Scratch for up to ``capacity`` quantized rows of x.

    Args:
        spec: the linear.
        planes: int8 digits per value, 1 to 3.
        capacity: rows.

    Attributes:
        planes: int8 buffers [capacity, K + padding], the most significant first.
        scales: float32 [capacity, G].
        sums: float32 [capacity, G] for each plane, the sum of its digits over the group: whole numbers.
    """

    def __init__(self, spec: MatmulSpec, planes: int, capacity: int) -> None:
        self.spec = spec
        # Rows a multiple of 4 KiB apart would all fall into one set of the cache.
        stride = spec.in_features + ROW_PADDING
        self.planes = [T.alloc_buffer((capacity, stride), "int8") for _ in range(planes)]
        self.scales = T.alloc_buffer((capacity, spec.groups), "float32")
        self.sums = [T.alloc_buffer((capacity, spec.groups), "float32") for _ in range(planes)]
        self._words = [
            T.decl_buffer((capacity, stride // 4), "int32", data=plane.data) for plane in self.planes
        ]

    def broadcast(self, plane: int, row: Expression, k: Expression) -> Expression:
        """The four digits x[row, k .. k + 3] of a plane in every lane, as int32x16; k is a multiple of 4."""
        return splat(self._words[plane][row, T.truncdiv(k, 4)])

    def sixteen(self, plane: int, row: Expression, k: Expression) -> Expression:
        """The digits x[row, k .. k + 15] of a plane as int32x4; k is a multiple of 4."""
        return self._words[plane][row, lanes(T.truncdiv(k, 4), 4)]

    def fill(self, x: Input, source_row: Expression, row: Expression) -> None:
        """Quantize x[source_row] into ``row``."""
        width = 16 if self.spec.group_size % 16 == 0 else 8
        steps = self.spec.group_size // width
        loaded = x.row(source_row, width)
        with T.serial(0, self.spec.groups) as group:
            start = T.bind(group * self.spec.group_size)

            zero = splat(0.0, count=width)
            largest = Register(zero, lanes=width)
            with T.serial(0, steps) as step:
                value = T.bind(loaded.first(start, step))
                largest.set(T.max(largest.get(), T.max(value, zero - value)))
            maximum = T.bind(horizontal_max(largest.get(), width))
            top = float(LARGEST << (DIGIT_BITS * (len(self.planes) - 1)))
            self._keep(self.scales, loaded.scaled(maximum / T.float32(top)), row, group)
            # A subnormal maximum would make the factor infinite: such a group counts as zero.
            factor = T.bind(T.Select(maximum > T.float32(1e-30), T.float32(top) / maximum, T.float32(0)))
            totals = [Register(zero, lanes=width) for _ in self.planes]
            with T.serial(0, steps) as step:
                scaled = loaded.again(start, step) * splat(factor, count=width)
                rounded = T.bind(T.call_llvm_pure_intrin(f"float32x{width}", "llvm.nearbyint", scaled))
                self._store_digits(rounded, row, group, step * width, width, totals)
            for total, sums in zip(totals, self.sums, strict=True):
                self._keep(sums, horizontal_sum(total.get(), width), row, group)

    def _store_digits(
        self,
        value: Expression,
        row: Expression,
        group: Expression,
        k: Expression,
        width: int,
        totals: list[Register],
    ) -> None:
        """Split whole numbers into digits, the last digit first, and add each to its plane's total.

        They belong to ``width`` k from the k-th of the group on.
        """
        base, half = splat(float(1 << DIGIT_BITS), count=width), splat(0.5, count=width)
        for plane in range(len(self.planes) - 1, -1, -1):
            digit = value
            if plane > 0:
                # In float32 all of this is exact: |value| < 2**24, and so the digit lies in -128 .. 127.
                shifted = value * splat(1 / (1 << DIGIT_BITS), count=width) + half
                rest = T.bind(T.call_llvm_pure_intrin(f"float32x{width}", "llvm.floor", shifted))
                digit = T.bind(value - rest * base)
                value = rest
            totals[plane].set(totals[plane].get() + digit)
            self._store(plane, T.cast(digit, f"int32x{width}"), row, group, k, width)

    def _store(
        self, plane: int, digit: Expression, row: Expression, group: Expression, k: Expression, width: int
    ) -> None:
        start = group * self.spec.group_size + k
        T.buffer_store(self.planes[plane], T.cast(digit, f"int8x{width}"), [row, lanes(start, width)])

    def _keep(self, buffer: Buffer, value: Expression, row: Expression, group: Expression) -> None:
        T.buffer_store(buffer, value, [row, group])
