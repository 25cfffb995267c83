"""What one warp adds up: some tiles of W against some eights of tokens, over a block of 64 k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, ROWS
from awq_tvm.schedules.cuda.fragments import HALF_K, Fragments
from awq_tvm.schedules.gpu.weights import local


@dataclass(frozen=True)
class Run:
    """A block of a run of neighbours of one group.

    Attributes:
        products: float32, as many as the sums; in registers from the first of the run to the last.
        first: whether it is the first.
        last: likewise.
    """

    products: Any
    first: bool
    last: bool


def add_block(
    weights: Fragments,
    sums: Any,
    shared: Any,
    bases: list[Any],
    lane: Any,
    eights: int,
    x_place: Callable[[int, int], Any],
    run: Run | None = None,
) -> None:
    """Emit ``sums += scale * ((q - z) @ x)`` over one block: products exact, sums and scales float32.

    Args:
        weights: of the linear.
        sums: float32, four of each tile and eight, see ``held``.
        shared: where ``Fragments.copy`` has put the tiles, and x is.
        bases: where each tile begins.
        lane: of the warp.
        eights: how many times eight tokens.
        x_place: where eight k of one token are, given the eight and the half block: of lane l those of token l % 8
            from k = 8 (l / 8) on.
        run: of blocks of one group, whose products are added before they are scaled; None where each is scaled.
    """
    parts = weights.sums_per_block
    raw = [weights.read_codes(shared, base, lane) for base in bases]
    for part in range(parts):
        halves = range(part * 2 // parts, (part + 1) * 2 // parts)
        scales, left = [], []
        for base, codes in zip(bases, raw, strict=True):
            scale, zeros = weights.read_group(shared, base, part, lane)
            scales.append(scale)
            left.append([weights.decode(codes, half, zeros) for half in halves])
        for eight in range(eights):
            right = []
            for half in halves:
                registers = local("x_words", 4, "uint32")
                ptx.load_matrices([registers[r] for r in range(4)], shared.ptr_to([x_place(eight, half)]))
                right.append(registers)
            for i, (scale, tile) in enumerate(zip(scales, left, strict=True)):
                held_at = [_at(i, eight, eights, d) for d in range(4)]
                if run is None:
                    register = local("products", 4, "float32")
                    products = [register[d] for d in range(4)]
                    clear(register, 4)
                else:
                    products = [run.products[at] for at in held_at]
                    if run.first:
                        for at in held_at:
                            T.buffer_store(run.products, T.float32(0), [at])
                _multiply(products, tile, right, weights.spec.dtype)
                if run is None or run.last:
                    for d, at in enumerate(held_at):
                        T.buffer_store(sums, sums[at] + scale[d // 2] * products[d], [at])


def _multiply(products: list[Any], left: list[Any], right: list[Any], dtype: str) -> None:
    """Emit the addition of the product of some half blocks of a tile and of eight tokens to four registers."""
    for w, x in zip(left, right, strict=True):
        for j in range(HALF_K // 16):
            a, b = [w[4 * j + r] for r in range(4)], [x[2 * j], x[2 * j + 1]]
            ptx.mma(products, a, b, dtype)


def clear(sums: Any, count: int) -> None:
    """Emit ``sums[:count] = 0``."""
    for i in range(count):
        T.buffer_store(sums, T.float32(0), [i])


def held(tiles: int, eights: int, lane: Any) -> Iterator[tuple[int, Any, Any]]:
    """What a lane's sums are of: (place among them, output within the tiles, token within the eights)."""
    for tile in range(tiles):
        for eight in range(eights):
            for d in range(4):
                row, token = ROWS * tile + lane // 4 + d // 2 * 8, EIGHT * eight + lane % 4 * 2 + d % 2
                yield _at(tile, eight, eights, d), row, token


def _at(tile: int, eight: int, eights: int, d: int) -> int:
    return 4 * (tile * eights + eight) + d
