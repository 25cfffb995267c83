"""Dividing k among blocks where tiles are fewer than SMs: each part leaves float32 sums, a second kernel adds them.

The parts are added in their order, whichever block was done first, so that a result is the same each time; and no
block waits for another. The price is a second launch, and sums that are written and read once, mostly in the
second-level cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import Dispatch, Tile
from awq_tvm.schedules.cuda.epilogue import MOST, finish_together
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_THREADS = 128
"""Of a block that adds parts."""


@dataclass(frozen=True)
class Parts:
    """k in parts, each the work of other blocks.

    Attributes:
        count: how many; an int, or an expression of M.
        tokens: M.
        rows: N.
        sums: float32, each part's own sums, see ``place``.
    """

    count: Any
    tokens: Any
    rows: int
    sums: Any

    def bounds(self, part: Any, blocks: int) -> tuple[Any, Any]:
        """Emit where a part begins: its first block of k, and how many it has, in registers."""
        found = local("own_blocks", 2, "int32")
        count = self.count if isinstance(self.count, int) else T.Cast("int32", self.count)
        first, end = (T.truncdiv(T.Cast("int32", one) * blocks, count) for one in (part, part + 1))
        T.buffer_store(found, first, [0])
        T.buffer_store(found, end - found[0], [1])
        return found[0], found[1]

    def place(self, part: Any, token: Any, row: Any) -> Any:
        """Where a sum lies: [count, M, N] in one dimension, as its length is that of the longest."""
        return T.Cast("int32", part * self.tokens + token) * self.rows + row


def columns(spec: MatmulSpec, config: Tile) -> int:
    """Tiles along the outputs."""
    return -(-spec.out_features // config.rows)


def parts_for(spec: MatmulSpec, config: Dispatch[Tile, Tile], tiles: Any) -> Any:
    """In how many parts k is divided: as many as leave each block an SM of its own.

    More would be two rounds of blocks, and sums of parts cost about what eight blocks of k do.

    Args:
        spec: the linear; a part has at least ``config.split_blocks`` blocks of k.
        config: of the linear.
        tiles: of outputs and tokens, an int or an expression.
    """
    most = max(1, spec.in_features // BLOCK_K // config.split_blocks)
    if isinstance(tiles, int):
        return min(max(1, config.sms // tiles), most)
    return T.min(T.max(1, T.floordiv(config.sms, tiles)), most)


def limit_of(spec: MatmulSpec, config: Dispatch[Tile, Tile], tiled: Tile) -> int:
    """The largest M for one of ``config.middle``.

    For the last it is larger than its tile as long as the tiles of ``many`` fill less than three quarters of the SMs.
    """
    if tiled != config.middle[-1]:
        return tiled.tokens
    filling = -(-3 * config.sms // (4 * columns(spec, config.many)))
    return max(tiled.tokens, config.many.tokens * (filling - 1))


def parts_of_tiled(spec: MatmulSpec, config: Dispatch[Tile, Tile], tiled: Tile, tokens: Any) -> Any:
    """In how many parts one of ``config.middle`` divides k: an int, or an expression of M where that decides."""
    across = columns(spec, tiled)
    alone = parts_for(spec, config, across)
    if alone == 1 or limit_of(spec, config, tiled) == tiled.tokens:
        return alone
    return parts_for(spec, config, (tokens + (tiled.tokens - 1)) // tiled.tokens * across)


def make_parts(spec: MatmulSpec, config: Dispatch[Tile, Tile], tiled: Tile, tokens: Any) -> Parts | None:
    """Emit the allocation of the sums in global memory; None where k stays whole for every M of the kernel.

    TVM moves it to the top of the function, where M may be anything: so its size is a number.
    """
    count = parts_of_tiled(spec, config, tiled, tokens)
    if isinstance(count, int) and count == 1:
        return None
    limit = limit_of(spec, config, tiled)
    # Of all M with as many tiles the largest, which has the most sums.
    counts = {
        min(along * tiled.tokens, limit): parts_for(spec, config, along * columns(spec, tiled))
        for along in range(1, -(-limit // tiled.tokens) + 1)
    }
    longest = max(m * parts for m, parts in counts.items() if parts > 1)
    length = longest * spec.out_features
    memory = IRBuilder.name("part_sums", T.alloc_buffer((length,), "float32", scope="global"))
    # Through a second name, or TVM makes the allocation as long as the indices can be for any M.
    sums = IRBuilder.name("sums_of_parts", T.decl_buffer((length,), "float32", data=memory.data))
    return Parts(count, tokens, spec.out_features, sums)


def add_parts_kernel(
    spec: MatmulSpec, parts: Parts, arguments: dict[str, Any], tokens: Any, overlaps: bool = False
) -> None:
    """Emit the kernel that adds the parts and finishes the outputs: a thread eight neighbours, where N allows.

    Args:
        spec: the linear.
        parts: what the blocks have left.
        arguments: buffers by name.
        tokens: M.
        overlaps: the launch may begin before the one before has ended.
    """
    width = math.gcd(spec.out_features, MOST)
    pieces = spec.out_features // width
    with (
        T.launch_thread("blockIdx.y", tokens) as token,
        T.launch_thread("blockIdx.x", -(-pieces // _THREADS)) as bx,
        T.launch_thread("threadIdx.x", _THREADS) as thread,
    ):
        if overlaps:
            ptx.let_next_begin()
            ptx.wait_for_launches()
        row = (bx * _THREADS + thread) * width
        with T.If(row < spec.out_features), T.Then():
            totals = local("totals", width, "float32")
            for i in range(width):
                T.buffer_store(totals, T.float32(0), [i])
            with T.serial(0, parts.count) as part:
                found = local("found", width, "float32")
                for first in range(0, width, 4):
                    place = parts.place(part, token, row + first)
                    with T.vectorized(0, min(width, 4)) as j:
                        T.buffer_store(found, parts.sums[place + j], [first + j])
                for i in range(width):
                    T.buffer_store(totals, totals[i] + found[i], [i])
            finish_together(spec, totals, width, token, row, arguments)
