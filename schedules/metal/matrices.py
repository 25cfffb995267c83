"""The 8 x 8 matrices that a SIMD group multiplies, each as one statement of the IR."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.metal.config import SIDE


def matrices(name: str, count: int, dtype: str) -> Any:
    """Registers of a SIMD group for so many matrices."""
    return IRBuilder.name(name, T.alloc_buffer((count * SIDE * SIDE,), dtype, scope="metal.simdgroup"))


def clear(of: Any, count: int) -> None:
    """Emit zeros for the first so many matrices."""
    for i in range(count):
        T.evaluate(T.metal.make_filled_simdgroup_matrix(of.data, i, T.float32(0), SIDE, SIDE))


def load(into: Any, at: int, place: Any, stride: int, turned: bool = False) -> None:
    """Emit the load of ``into[at]``.

    Args:
        into: matrices.
        at: which.
        place: the address of its first number.
        stride: numbers from a row in memory to the next.
        turned: whether what lies row by row are its columns.
    """
    T.evaluate(T.metal.simdgroup_load(into.data, at, place, stride, SIDE, SIDE, turned))


def store(of: Any, at: int, place: Any, stride: int) -> None:
    """Emit the store of ``of[at]``, row by row; see ``load``."""
    T.evaluate(T.metal.simdgroup_store(of.data, at, place, stride, SIDE, SIDE, False))


def multiply(d: Any, to: int, a: Any, left: int, b: Any, right: int, c: Any = None, plus: int = 0) -> None:
    """Emit ``d[to] = a[left] @ b[right] + c[plus]``, where ``c[plus]`` is ``d[to]`` if it is not given."""
    added = (d, to) if c is None else (c, plus)
    T.evaluate(
        T.metal.simdgroup_multiply_accumulate(
            d.data, to, a.data, left, b.data, right, added[0].data, added[1]
        )
    )
