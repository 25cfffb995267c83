"""Vectors of 16 lanes in TensorIR: one zmm, two ymm or four NEON registers, as the target has them.

Every function here returns an expression or adds statements to the PrimFunc under construction
(``tvm.script.ir_builder``); Python loops around them are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

LANES = 16

Expression = Any
Buffer = Any


def lanes(start: Expression = 0, count: int = LANES) -> Expression:
    """The indices start .. start + count - 1."""
    return T.ramp(start, 1, count)


def splat(value: Expression, dtype: str = "float32", count: int = LANES) -> Expression:
    """The same scalar in every lane."""
    scalar = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return T.broadcast(scalar, count)


def fma(a: Expression, b: Expression, c: Expression) -> Expression:
    """A * b + c, rounded once, on float32 of any number of lanes."""
    return T.call_llvm_pure_intrin(str(a.ty.dtype), "llvm.fma", a, b, c)


def prefetch(buffer: Buffer, index: list[Expression]) -> None:
    """Ask for a cache line that is read soon; the index may lie beyond the buffer's end."""
    reading, all_levels, data = (tirx.IntImm("int32", value) for value in (0, 3, 1))
    address = T.address_of(buffer[tuple(index)])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, reading, all_levels, data))


class Register:
    """A variable of 16 lanes (or fewer); small enough that LLVM keeps it in registers."""

    def __init__(self, value: Expression | None = None, dtype: str = "float32", lanes: int = LANES) -> None:
        self.buffer, self._lanes = T.alloc_buffer((lanes,), dtype), lanes
        if value is not None:
            self.set(value)

    def get(self) -> Expression:
        """Its present value."""
        return self.buffer[lanes(0, self._lanes)]

    def set(self, value: Expression) -> None:
        """Overwrite it."""
        T.buffer_store(self.buffer, value, [lanes(0, self._lanes)])

    def add_product(self, a: Expression, b: Expression) -> None:
        """Add a * b to it."""
        self.set(fma(a, b, self.get()))


def take(vector: Expression, indices: list[int]) -> Expression:
    """The named lanes of a vector, in that order."""
    return tirx.Shuffle([vector], [tirx.IntImm("int32", i) for i in indices])


def horizontal_sum(vector: Expression, count: int = LANES) -> Expression:
    """The sum of the lanes as a scalar, added as a balanced tree."""
    return _tree(lambda a, b: a + b, vector, count)


def horizontal_max(vector: Expression, count: int = LANES) -> Expression:
    """The largest lane as a scalar."""
    return _tree(T.max, vector, count)


def _tree(
    combine: Callable[[Expression, Expression], Expression], vector: Expression, count: int
) -> Expression:
    while count > 1:
        half = count // 2
        bound = T.bind(vector)
        vector = combine(take(bound, list(range(half))), take(bound, list(range(half, count))))
        count = half
    return vector
