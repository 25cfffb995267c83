"""How the tiles of a kernel are shared out among the SMs: whole rounds of them, and what is left in parts of k.

Blocks of a cluster can add up the parts of a tile among themselves, in shared memory, where the GPU has clusters and
places so many of them at once; else parts leave their sums for another kernel.

A round of tiles gives each SM one. Where the last round would leave most SMs idle, the tiles in it are the work of
several blocks each: of as many as leave each block an SM of its own. So of fewer tiles than SMs all are divided, and
of a multiple of the SMs none.
"""

from __future__ import annotations

import functools
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

MOST_OF_CLUSTER = 8
"""Blocks that every GPU with clusters takes in one."""

SMS_OF_PROCESSOR = 16
"""Streaming multiprocessors of a graphics processing cluster, whose shared memories are connected: the least."""

BETWEEN = 2
"""How many times as long as from the second-level cache a byte takes from another block of the cluster."""

LAUNCH = 40_000
"""Bytes that the cache gives an SM in the time of a second launch, a microsecond."""


@dataclass(frozen=True)
class Division:
    """Which tiles are divided: numbers, or expressions in int32.

    Attributes:
        whole: tiles that are the work of one block each; they come first.
        rest: tiles behind them, each the work of ``parts`` blocks.
        parts: of k.
        clustered: the parts of a tile are a cluster; then there are no whole tiles.
    """

    whole: Any
    rest: Any
    parts: Any
    clustered: bool = False

    @property
    def blocks(self) -> Any:
        """Of the grid: the whole tiles, then the first part of each other tile, then the second.

        In clusters those of a tile follow each other.
        """
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

    @property
    def adds_later(self) -> bool:
        """Whether there may be a second kernel, which adds the parts."""
        return self.divides and not self.clustered

    def rounds(self, sms: int) -> float:
        """How many tiles the SM computes that computes most, where they are numbers."""
        return float(-(-self.whole // sms) + (1 / self.parts if self.rest else 0))


def divide(tiles: Any, sms: int, most: int, clusters: bool = False) -> Division:
    """Share out tiles.

    More parts than leave each block an SM would be one more round.

    Args:
        tiles: how many; an int, or an expression in int32.
        sms: streaming multiprocessors.
        most: parts of a tile.
        clusters: whether blocks can be launched in clusters; nothing to an expression, see ``are_clusters``.
    """
    if most == 1:
        return Division(tiles, 0, 1)
    if isinstance(tiles, int):
        if clusters and are_clusters(tiles, sms, most):
            return of_clusters(tiles, sms, most)
        last = tiles % sms
        parts = min(sms // max(last, 1), most)
        rest = last if parts > 1 else 0
    else:
        last = T.truncmod(tiles, sms)
        parts = T.min(T.truncdiv(sms, T.max(last, 1)), most)
        rest = T.Select(parts > 1, last, 0)
    return Division(tiles - rest, rest, parts)


def of_clusters(tiles: Any, sms: int, most: int) -> Division:
    """Share out tiles of which each is the work of a cluster, see ``divide``."""
    if isinstance(tiles, int):
        return Division(0, tiles, min(sms // tiles, most), clustered=True)
    return Division(0, tiles, T.min(T.truncdiv(sms, tiles), most), clustered=True)


def are_clusters(tiles: Any, sms: int, most: int) -> Any:
    """Whether each tile may be the work of a cluster, see ``divide``; a bool, or an expression.

    No cluster may be too large for a GPU, nor may they be more than run at once.
    """
    # By how many parts there are: from so many tiles on, up to so many.
    ranges = []
    for parts in range(2, min(most, MOST_OF_CLUSTER) + 1):
        first = sms // (parts + 1) + 1 if parts < most else 1
        last = min(sms // parts, sms // SMS_OF_PROCESSOR * (SMS_OF_PROCESSOR // parts))
        if first <= last:
            ranges.append((first, last))
    if isinstance(tiles, int):
        return any(first <= tiles <= last for first, last in ranges)
    return functools.reduce(T.Or, (T.And(tiles >= one[0], tiles <= one[1]) for one in ranges), T.bool(False))


def division_of(spec: MatmulSpec, config: Dispatch[Tile, Tile], tile: Tile, tokens: int) -> Division:
    """Of the tiles of M = tokens."""
    return divide(tiles_of(spec, tile, tokens), config.sms, most_parts(spec, tile), config.clusters)


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


def best_tile(
    spec: MatmulSpec, tiles: Sequence[Tile], tokens: int, sms: int, products: int, clusters: bool = False
) -> Any:
    """Which of some tiles suits M = tokens, the first of equal ones.

    Args:
        spec: the linear.
        tiles: to choose from.
        tokens: M.
        sms: streaming multiprocessors.
        products: ``MMA_PRODUCTS`` or ``WGMMA_PRODUCTS``.
        clusters: whether blocks can be launched in clusters.
    """

    def takes(tile: Tile) -> float:
        number, blocks = tiles_of(spec, tile, tokens), spec.in_features // BLOCK_K
        found = divide(number, sms, most_parts(spec, tile), clusters)
        multiplied = found.rounds(sms) * blocks * BLOCK_K * tile.rows * tile.tokens / products
        moved = number * blocks * tile.block_bytes(spec.bits, spec.group_size)
        behind = 0.0
        if found.clustered:
            # A block reads its share of the tile from the others when they are done.
            behind = BETWEEN * sums_bytes(tile) / 2 * (found.parts - 1) / found.parts
        elif found.rest:
            moved += found.sums * sums_bytes(tile)
            behind = LAUNCH
        # What takes longer, and an eighth of the other, which hides behind it but for the ends.
        shorter, longer = sorted((multiplied, moved / sms))
        return float(longer + shorter / 8 + behind)

    return min(tiles, key=takes)
