"""What leaves a tile's sums: the outputs, or where blocks divide k this part's own sums.

`mma` leaves a thread sums of two neighbouring tokens, 8 outputs apart, and in memory outputs are neighbours: written
from there, each is a store of its own. So the sums pass through shared memory, where they lie by token, and those of
warps that divided k are added on the way out. Then each thread has eight neighbouring outputs of a token: it reads
residual and bias, and writes y, 16 bytes at a time. Where N is no multiple of eight, rows of y begin anywhere, and as
many are taken at once as may be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.config import EIGHT, PADDING, eights_at_once
from awq_tvm.schedules.cuda.epilogue import MOST, finish_together
from awq_tvm.schedules.cuda.split_k import Share, Tiles
from awq_tvm.schedules.gpu.weights import local

_FLOATS = 4
"""Sums that it reads or writes at once."""


def place(rows: int, token: Any, row: Any) -> Any:
    """Where in shared memory the sum of a token and one of so many rows lies.

    The padding lets the eight rows of four tokens that a warp writes meet all banks; and of each second 32 rows the
    fours change places, so that eight threads that read every second four of 64 rows meet all banks too.
    """
    return token * (rows + PADDING) + (row ^ row // 32 % 2 * 4)


@dataclass(frozen=True)
class Held:
    """What a thread has sums of, as `mma` leaves them: [tiles, eights, 4].

    Attributes:
        tiles: pieces of 16 outputs, of which the thread has its row and that 8 below.
        apart: outputs from one to the next.
        eights: of tokens, of which the thread has two neighbours.
        row: of its first sum, in the tile.
        token: likewise.
        k: which of the threads with sums of the same outputs.
    """

    tiles: int
    apart: int
    eights: int
    row: Any
    token: Any
    k: Any


class TileOutputs:
    """Where a block's sums go.

    Args:
        tiles: of the kernel.
        arguments: the kernel's buffers by name.
        tokens: M.
        own: what the block computes: a part of k, or outputs that it finishes.
        thread: of the block.
    """

    def __init__(self, tiles: Tiles, arguments: dict[str, Any], tokens: Any, own: Share, thread: Any) -> None:
        self.spec, self.tile, self.tiles = tiles.spec, tiles.tile, tiles
        self.arguments, self.tokens, self.own, self.thread = arguments, tokens, own, thread

    def store(self, sums: Any, held: Held, shared: Any) -> None:
        """Emit the stores.

        Args:
            sums: of the thread.
            held: what they are of.
            shared: 32-bit words in shared memory, of which nothing is wanted any more once every thread is here.
        """
        words = int(shared.shape[0])
        floats = IRBuilder.name(
            "tile_sums", T.decl_buffer((words,), "float32", data=shared.data, scope="shared.dyn")
        )
        at_once = eights_at_once(self.tile, held.eights, 4 * words)
        own = self._places_of(held, at_once)
        for first in range(0, held.eights, at_once):
            T.evaluate(T.tvm_storage_sync("shared"))
            for tile in range(held.tiles):
                for eight in range(at_once):
                    for d in range(4):
                        at = 4 * (tile * held.eights + first + eight) + d
                        behind = (EIGHT * eight + d % 2) * (self.tile.rows + PADDING) + d // 2 * 8
                        T.buffer_store(floats, sums[at], [own[tile] + behind])
            T.evaluate(T.tvm_storage_sync("shared"))
            self._leave(floats, held.eights, first, at_once)

    def _places_of(self, held: Held, at_once: int) -> Any:
        """Emit where the thread's first sum of each of its tiles goes, in registers."""
        own = local("own_places", held.tiles, "int32")
        token = held.k * self._tokens_at_once(held.eights, at_once) + (
            held.token // (EIGHT * held.eights) * (EIGHT * at_once) + held.token % EIGHT
        )
        for tile in range(held.tiles):
            T.buffer_store(own, place(self.tile.rows, token, held.row + tile * held.apart), [tile])
        return own

    def _tokens_at_once(self, eights: int, at_once: int) -> int:
        return self.tile.tokens // eights * at_once

    def _leave(self, floats: Any, eights: int, first: int, at_once: int) -> None:
        """Emit what becomes of the eights of each warp from ``first`` on."""
        own = self.own

        def finish(totals: Any, token: Any, row: Any, width: int) -> None:
            place = own.first_token + token, own.first_row + row
            finish_together(self.spec, totals, width, *place, self.arguments)

        def keep(totals: Any, token: Any, row: Any, width: int) -> None:
            at = self.tiles.place(own.number, token, row)
            with T.vectorized(0, width) as j:
                T.buffer_store(self.tiles.sums, totals[j], [at + j])

        def finish_each() -> None:
            self._each(floats, math.gcd(self.spec.out_features, MOST), eights, first, at_once, finish)

        def keep_each() -> None:
            self._each(floats, _FLOATS, eights, first, at_once, keep)

        if isinstance(own.is_part, bool):
            (keep_each if own.is_part else finish_each)()
            return
        with T.If(own.is_part):
            with T.Then():
                keep_each()
            with T.Else():
                finish_each()

    def _each(
        self,
        floats: Any,
        width: int,
        eights: int,
        first: int,
        at_once: int,
        into: Callable[[Any, Any, Any, int], None],
    ) -> None:
        """Emit the reading of the thread's pieces of so many neighbouring outputs, and what becomes of them."""
        tile, n = self.tile, self.spec.out_features
        across, there = tile.rows // width, self._tokens_at_once(eights, at_once)
        for start in range(0, across * there, tile.threads):
            number = start + self.thread
            at, row = number // across, number % across * width
            token = at // (EIGHT * at_once) * (EIGHT * eights) + (EIGHT * first + at % (EIGHT * at_once))
            inside = [self.own.first_token + token < self.tokens]
            if n % tile.rows:
                inside.append(self.own.first_row + row < n)
            if start + tile.threads > across * there:
                inside.insert(0, number < across * there)
            with T.If(functools.reduce(T.And, inside)), T.Then():
                totals = self._read(floats, at, there, row, width)
                into(totals, token, row, width)

    def _read(self, floats: Any, token: Any, there: int, row: Any, width: int) -> Any:
        """Emit the sums of a piece, of those that divided k added in their order; returns their registers."""
        totals = local("totals", width, "float32")
        step = min(width, _FLOATS)
        for k in range(self.tile.k_warps):
            found = local("found", width, "float32") if k else totals
            for behind in range(0, width, step):
                at = place(self.tile.rows, k * there + token, row + behind)
                with T.vectorized(0, step) as j:
                    T.buffer_store(found, floats[at + j], [behind + j])
            if k:
                for i in range(width):
                    T.buffer_store(totals, totals[i] + found[i], [i])
        return totals
