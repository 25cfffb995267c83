"""What one warp adds up: some fragments of W against some eights of tokens, over a block of 64 k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.fragments import HALF_K, Fragments
from awq_tvm.schedules.gpu.weights import local

EIGHT = 8
"""Tokens of the right operand of one instruction."""


def add_block(
    weights: Fragments,
    sums: Any,
    raw: Any,
    at: int,
    tiles: list[Any],
    block: Any,
    lane: Any,
    eights: int,
    load_x: Callable[[Any, int, int], None],
) -> None:
    """Emit ``sums += scale * ((q - z) @ x)`` over one block: products exact, sums and scales float32.

    Args:
        weights: of the linear.
        sums: float32, four of each tile and eight: ``sums[4 * (tile * eights + eight) + i]``.
        raw: codes of the tiles, one after the other, from ``Fragments.load``.
        at: where they begin.
        tiles: the tiles' numbers.
        block: the block's number.
        lane: of the warp.
        eights: how many times eight tokens.
        load_x: emits the load of a lane's 16 bytes of x, given four registers, the eight and the half block.
    """
    per_sum = weights.halves_per_sum
    for first in range(0, 2, per_sum):
        halves = range(first, first + per_sum)
        group = weights.group_of(block, first)
        scales, left = [], []
        for i, tile in enumerate(tiles):
            scale, zeros = weights.load_group(tile, group, lane)
            scales.append(scale)
            decoded = []
            for half in halves:
                registers = local("w", 8, "uint32")
                weights.decode(registers, raw, at + weights.words * i, half, zeros)
                decoded.append(registers)
            left.append(decoded)
        for eight in range(eights):
            right = []
            for half in halves:
                registers = local("x_words", 4, "uint32")
                load_x(registers, eight, half)
                right.append(registers)
            for i in range(len(tiles)):
                part = local("part", 4, "float32")
                for d in range(4):
                    T.buffer_store(part, T.float32(0), [d])
                for w, x in zip(left[i], right, strict=True):
                    for j in range(HALF_K // 16):
                        ptx.mma(
                            [part[d] for d in range(4)],
                            [w[4 * j + r] for r in range(4)],
                            [x[2 * j], x[2 * j + 1]],
                        )
                for d in range(4):
                    to = 4 * (i * eights + eight) + d
                    T.buffer_store(sums, sums[to] + scales[i][d // 2] * part[d], [to])


def clear(sums: Any, count: int) -> None:
    """Emit ``sums[:count] = 0``."""
    for i in range(count):
        T.buffer_store(sums, T.float32(0), [i])
