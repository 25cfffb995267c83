"""Parts of k: what a block computes of a kernel's tiles, and a second kernel that adds what the parts have left.

Which tiles are divided says ``division``. Where the parts of a tile are a cluster, its blocks add up among themselves
(``tile_outputs``). Else a block of a part leaves float32 sums, and the second kernel adds those of a tile in their
order, whichever block was done first, so that a result is the same each time; and no block waits for another. The
price is a second launch, and sums that are written and read once, mostly in the second-level cache.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import Dispatch, Tile
from awq_tvm.schedules.cuda.division import (
    Division,
    are_clusters,
    columns,
    divide,
    most_parts,
    of_clusters,
    part_step,
)
from awq_tvm.schedules.cuda.epilogue import MOST, finish_together
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.cuda.warp_sum import clear
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_THREADS = 128
"""Of a block that adds parts."""


@dataclass(frozen=True)
class Share:
    """What a block computes.

    Attributes:
        first_row: of its tile.
        first_token: likewise.
        first_block: of k.
        blocks: of k, how many.
        is_part: of k; a bool where all blocks are or none.
        number: among the parts of all tiles, where it is one, or in a cluster among those of its tile.
    """

    first_row: Any
    first_token: Any
    first_block: Any
    blocks: Any
    is_part: Any
    number: Any


@dataclass(frozen=True)
class Tiles:
    """The tiles of a kernel.

    Attributes:
        spec: the linear.
        tile: one of them.
        along: how many along the tokens; an int, or an expression in int32.
        division: which of them are divided.
        sums: float32, the parts' own sums, see ``place``; None if no part leaves any.
    """

    spec: MatmulSpec
    tile: Tile
    along: Any
    division: Division
    sums: Any

    def share_of(self, block: Any) -> Share:
        """Emit what a block of the grid computes, in registers."""
        blocks, division = self.spec.in_features // BLOCK_K, self.division
        if not division.divides:
            return Share(*self.begin_of(block), 0, blocks, False, 0)
        own = local("own_share", 4, "int32")
        tile, first, count, number = (own[i] for i in range(4))
        if division.clustered:
            T.buffer_store(own, T.truncdiv(block, division.parts), [0])
            T.buffer_store(own, T.truncmod(block, division.parts), [3])
            self._part(own, number)
            return Share(*self.begin_of(tile), first, count, True, number)
        T.buffer_store(own, block - division.whole, [3])

        def part() -> None:
            T.buffer_store(own, division.whole + T.truncmod(number, division.rest), [0])
            self._part(own, T.truncdiv(number, division.rest))

        def whole() -> None:
            for place, value in enumerate((block, 0, blocks)):
                T.buffer_store(own, value, [place])

        if isinstance(division.whole, int) and division.whole == 0:
            part()
            return Share(*self.begin_of(tile), first, count, True, number)
        with T.If(number >= 0):
            with T.Then():
                part()
            with T.Else():
                whole()
        return Share(*self.begin_of(tile), first, count, number >= 0, number)

    def _part(self, own: Any, at: Any) -> None:
        """Emit which blocks of k a part has, to the second and third register of ``own``.

        Parts begin at a multiple of ``part_step``.
        """
        several, parts = part_step(self.spec, self.tile), self.division.parts
        steps = self.spec.in_features // BLOCK_K // several
        begin, end = (T.truncdiv(one * steps, parts) * several for one in (at, at + 1))
        T.buffer_store(own, begin, [1])
        T.buffer_store(own, end - own[1], [2])

    def clusters(self) -> AbstractContextManager[Any]:
        """What makes the blocks of a launch clusters, if they are."""
        if not self.division.clustered:
            return nullcontext()
        launched: AbstractContextManager[Any] = T.launch_thread("clusterCtaIdx.x", self.division.parts)
        return launched

    def place(self, number: Any, token: Any, row: Any) -> Any:
        """Where a sum of a part lies, by token and row of the tile."""
        return (number * self.tile.tokens + token) * self.tile.rows + row

    def begin_of(self, tile: Any) -> tuple[Any, Any]:
        """The first output and token of a tile: those of the same outputs follow each other, and share weights."""
        if isinstance(self.along, int) and self.along == 1:
            return tile * self.tile.rows, 0
        # In registers, or TVM repeats the division in each statement that needs its result. Multiplied outside, since
        # TVM has to see that what is read together is aligned.
        held = local("own_place", 2, "int32")
        for place, divided in enumerate((T.truncdiv, T.truncmod)):
            T.buffer_store(held, divided(tile, self.along), [place])
        return held[0] * self.tile.rows, held[1] * self.tile.tokens


def along_of(tile: Tile, tokens: Any) -> Any:
    """Tiles along the tokens, as an expression of M in int32."""
    return T.truncdiv(T.Cast("int32", tokens) + (tile.tokens - 1), tile.tokens)


def make_tiles(spec: MatmulSpec, config: Dispatch[Tile, Tile], tile: Tile, along: Any) -> Tiles:
    """The tiles of a kernel; emits the allocation of the parts' sums.

    TVM moves it to the top of the function, where M may be anything: so its size is a number.

    Args:
        spec: the linear.
        config: of the linear.
        tile: one of its tiles.
        along: how many along the tokens; an int, or an expression in int32.
    """
    across, most = columns(spec, tile), most_parts(spec, tile)
    # Of as many tiles as SMs more the last round is the same.
    counts = range(along, along + 1) if isinstance(along, int) else range(1, config.sms + 1)
    divisions = [divide(count * across, config.sms, most, config.clusters) for count in counts]
    if isinstance(along, int) and divisions[0].clustered:
        return Tiles(spec, tile, along, divisions[0], None)
    room = max(0 if one.clustered else one.sums for one in divisions)
    if room == 0:
        return Tiles(spec, tile, along, Division(along * across, 0, 1), None)
    division = divide(along * across, config.sms, most)
    length = room * tile.tokens * tile.rows
    memory = IRBuilder.name("part_sums", T.alloc_buffer((length,), "float32", scope="global"))
    # Through a second name, or TVM makes the allocation as long as the indices can be for any M.
    sums = IRBuilder.name("sums_of_parts", T.decl_buffer((length,), "float32", data=memory.data))
    return Tiles(spec, tile, along, division, sums)


def cluster_tiles(
    spec: MatmulSpec, config: Dispatch[Tile, Tile], tile: Tile, along: Any
) -> tuple[Any, Tiles] | None:
    """Whether the tiles of a kernel for any M are clusters, and what they are then; None if they never are.

    Args:
        spec: the linear.
        config: of the linear.
        tile: one of its tiles.
        along: how many along the tokens; an expression in int32.
    """
    across, most = columns(spec, tile), most_parts(spec, tile)
    if not config.clusters or not any(
        are_clusters(number, config.sms, most) for number in range(across, config.sms, across)
    ):
        return None
    number = along * across
    division = of_clusters(number, config.sms, most)
    return are_clusters(number, config.sms, most), Tiles(spec, tile, along, division, None)


def add_parts_kernel(tiles: Tiles, arguments: dict[str, Any], tokens: Any, overlaps: bool = False) -> None:
    """Emit the kernel that adds the parts and finishes the outputs: a thread eight neighbours, where N allows.

    Args:
        tiles: of which blocks have left parts.
        arguments: buffers by name.
        tokens: M.
        overlaps: the launch may begin before the one before has ended.
    """
    spec, tile, division = tiles.spec, tiles.tile, tiles.division
    width = math.gcd(spec.out_features, MOST)
    across = tile.rows // width
    with (
        T.launch_thread("blockIdx.y", division.rest) as number,
        T.launch_thread("blockIdx.x", -(-tile.tokens * across // _THREADS)) as bx,
        T.launch_thread("threadIdx.x", _THREADS) as thread,
    ):
        if overlaps:
            ptx.let_next_begin()
            ptx.wait_for_launches()
        piece = bx * _THREADS + thread
        own_row, own_token = piece % across * width, piece // across
        first_row, first_token = tiles.begin_of(division.whole + number)
        row, token = first_row + own_row, first_token + own_token
        inside = [token < tokens]
        if spec.out_features % tile.rows:
            inside.append(row < spec.out_features)
        if tile.tokens * across % _THREADS:
            inside.insert(0, own_token < tile.tokens)
        with T.If(functools.reduce(T.And, inside)), T.Then():
            totals = local("totals", width, "float32")
            clear(totals, width)
            with T.serial(0, division.parts) as part:
                found = local("found", width, "float32")
                for first in range(0, width, 4):
                    place = tiles.place(part * division.rest + number, own_token, own_row + first)
                    with T.vectorized(0, min(width, 4)) as j:
                        T.buffer_store(found, tiles.sums[place + j], [first + j])
                for i in range(width):
                    T.buffer_store(totals, totals[i] + found[i], [i])
            finish_together(spec, totals, width, token, row, arguments)
