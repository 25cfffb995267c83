"""Activations as integers: x[m, k] = scale[m, g] * t[m, k], t in 7 * planes + 1 bits and stored as int8 planes.

One plane is what ``activations="int8"`` means: symmetric, per token and group, t = round(127 x / max|x|). More
planes hold more digits in base 128, t = 128 ** 2 * p0 + 128 * p1 + p2 for three, so that byte dot products,
which are exact, serve float activations as well: three planes keep 21 bits below the group's largest value.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812

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

DIGIT_BITS = 7
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
        sums: float32 [capacity, G], sum of t over the group.
    """

    def __init__(self, spec: MatmulSpec, planes: int, capacity: int) -> None:
        self.spec = spec
        # Rows a multiple of 4 KiB apart would all fall into one set of the cache.
        stride = spec.in_features + ROW_PADDING
        self.planes = [T.alloc_buffer((capacity, stride), "int8") for _ in range(planes)]
        self.scales = T.alloc_buffer((capacity, spec.groups), "float32")
        self.sums = T.alloc_buffer((capacity, spec.groups), "float32")
        self._words = [
            T.decl_buffer((capacity, stride // 4), "int32", data=plane.data) for plane in self.planes
        ]

    def broadcast(self, plane: int, row: Expression, k: Expression) -> Expression:
        """The four digits x[row, k .. k + 3] of a plane in every lane, as int32x16; k is a multiple of 4."""
        return splat(self._words[plane][row, T.truncdiv(k, 4)])

    def fill(self, x: Buffer, source_row: Expression, row: Expression) -> None:
        """Quantize x[source_row] into ``row``."""
        width = 16 if self.spec.group_size % 16 == 0 else 8
        steps = self.spec.group_size // width
        with T.serial(0, self.spec.groups) as group:
            start = T.bind(group * self.spec.group_size)

            def load(step: Expression, start: Expression = start) -> Expression:
                return x[source_row, lanes(start + step * width, width)]

            zero = splat(0.0, count=width)
            largest = Register(zero, lanes=width)
            with T.serial(0, steps) as step:
                value = T.bind(load(step))
                largest.set(T.max(largest.get(), T.max(value, zero - value)))
            maximum = T.bind(horizontal_max(largest.get(), width))
            top = float(LARGEST << (DIGIT_BITS * (len(self.planes) - 1)))
            T.buffer_store(self.scales, maximum / T.float32(top), [row, group])
            # A subnormal maximum would make the factor infinite: such a group counts as zero.
            factor = T.bind(T.Select(maximum > T.float32(1e-30), T.float32(top) / maximum, T.float32(0)))
            total = Register(zero, lanes=width)
            with T.serial(0, steps) as step:
                scaled = load(step) * splat(factor, count=width)
                rounded = T.bind(T.call_llvm_pure_intrin(f"float32x{width}", "llvm.nearbyint", scaled))
                total.set(total.get() + rounded)
                self._store_digits(T.bind(T.cast(rounded, f"int32x{width}")), row, start + step * width, width)
            T.buffer_store(self.sums, horizontal_sum(total.get(), width), [row, group])

    def _store_digits(self, value: Expression, row: Expression, k: Expression, width: int) -> None:
        for place in range(len(self.planes) - 1, 0, -1):
            shift = DIGIT_BITS * place
            rounding = splat(1 << (shift - 1), "int32", width)
            digit = T.bind((value + rounding) >> splat(shift, "int32", width))
            self._store(len(self.planes) - 1 - place, digit, row, k, width)
            value = T.bind(value - (digit << splat(shift, "int32", width)))
        self._store(len(self.planes) - 1, value, row, k, width)

    def _store(self, plane: int, digit: Expression, row: Expression, k: Expression, width: int) -> None:
        T.buffer_store(self.planes[plane], T.cast(digit, f"int8x{width}"), [row, lanes(k, width)])
