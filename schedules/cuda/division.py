"""How the tiles of a kernel are shared out among the SMs: whole rounds of them, and what is left in parts of k.

A round of tiles gives each SM one. Where the last round would leave most SMs idle, the tiles in it are the work of
several blocks each: of as many as leave each block an SM of its own. So of fewer tiles than SMs all are divided, and
of a multiple of the SMs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.config import Dispatch, Tile
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.spec import MatmulSpec

MMA_PRODUCTS, WGMMA_PRODUCTS = 55, 90
"""Products that an SM adds up in the time in which the second-level cache gives it a byte.

An H100 adds up some 1,270 a cycle by `mma` and 2,048 by `wgmma`; 5.5 TB/s are 23 bytes a cycle for each SM.
"""

LAUNCH = 40_000
"""Bytes that the cache gives an SM in the time of a second launch, a microsecond."""


@dataclass(frozen=True)
class Division:
    """Which tiles are divided: numbers, or expressions in int32.

    Attributes:
        whole: tiles that are the work of one block each; they come first.
        rest: tiles behind them, each the work of ``parts`` blocks.
        parts: of k.
    """

    whole: Any
    rest: Any
    parts: Any

    @property
    def blocks(self) -> Any:
        """Of the grid: the whole tiles, then the first part of each other tile, then the second."""
        return self.whole + self.rest * self.parts

    @property
    def tiles(self) -> Any:
        """All of them."""
        return self.whole + self.rest

    @property
    def sums(self) -> Any:
        """Tiles of sums that parts leave: no more than SMs."""
        return self.rest * self.parts

    @property
    def divides(self) -> bool:
        """Whether there may be parts."""
        return not (isinstance(self.rest, int) and self.rest == 0)

    def rounds(self, sms: int) -> float:
        """How many tiles the SM computes that computes most, where they are numbers."""
        return float(-(-self.whole // sms) + (1 / self.parts if self.rest else 0))


def divide(tiles: Any, sms: int, most: int) -> Division:
    """Share out tiles.

    More parts than leave each block an SM would be one more round.

    Args:
        tiles: how many; an int, or an expression in int32.
        sms: streaming multiprocessors.
        most: parts of a tile.
    """
    if most == 1:
        return Division(tiles, 0, 1)
    if isinstance(tiles, int):
        last = tiles % sms
        parts = min(sms // max(last, 1), most)
        rest = last if parts > 1 else 0
    else:
        last = T.truncmod(tiles, sms)
        parts = T.min(T.truncdiv(sms, T.max(last, 1)), most)
        rest = T.Select(parts > 1, last, 0)
    return Division(tiles - rest, rest, parts)


def division_of(spec: MatmulSpec, config: Dispatch[Tile, Tile], tile: Tile, tokens: int) -> Division:
    """Of the tiles of M = tokens."""
    return divide(tiles_of(spec, tile, tokens), config.sms, most_parts(spec, tile))


def tiles_of(spec: MatmulSpec, tile: Tile, tokens: int) -> int:
    """How many M = tokens has."""
    return columns(spec, tile) * -(-tokens // tile.tokens)


def columns(spec: MatmulSpec, tile: Tile) -> int:
    """Tiles along the outputs."""
    return -(-spec.out_features // tile.rows)


def most_parts(spec: MatmulSpec, tile: Tile) -> int:
    """Parts that k may have: none reads less than its sums are written and read.

    Args:
        spec: the linear.
        tile: of the kernel; says how long a part is at any rate.
    """
    of_sums = -(-sums_bytes(tile) // tile.block_bytes(spec.bits, spec.group_size))
    return max(1, spec.in_features // BLOCK_K // max(tile.split_blocks, of_sums))


def part_step(spec: MatmulSpec, tile: Tile) -> int:
    """Blocks of k of which each part has a multiple.

    Those whose products are scaled at once; and one for each of the warps that take them in turn, where they come
    out even over all of k: else a warp would have to ask in each round whether there is one for it.
    """
    run, blocks = tile.run_of(spec.group_size), spec.in_features // BLOCK_K
    return max(run, tile.k_warps) if blocks % tile.k_warps == 0 else run


def sums_bytes(tile: Tile) -> int:
    """That a part of a tile has its sums written and read again."""
    return 2 * 4 * tile.rows * tile.tokens


def best_tile(spec: MatmulSpec, tiles: Sequence[Tile], tokens: int, sms: int, products: int) -> Any:
    """Which of some tiles suits M = tokens, the first of equal ones.

    Args:
        spec: the linear.
        tiles: to choose from.
        tokens: M.
        sms: streaming multiprocessors.
        products: ``MMA_PRODUCTS`` or ``WGMMA_PRODUCTS``.
    """

    def takes(tile: Tile) -> float:
        number, blocks = tiles_of(spec, tile, tokens), spec.in_features // BLOCK_K
        found = divide(number, sms, most_parts(spec, tile))
        multiplied = found.rounds(sms) * blocks * BLOCK_K * tile.rows * tile.tokens / products
        moved = number * blocks * tile.block_bytes(spec.bits, spec.group_size) + found.sums * sums_bytes(tile)
        # What takes longer, and an eighth of the other, which hides behind it but for the ends.
        shorter, longer = sorted((multiplied, moved / sms))
        return float(longer + shorter / 8 + (LAUNCH if found.rest else 0))

    return min(tiles, key=takes)
