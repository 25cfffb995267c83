"""What leaves a tile's sums: the outputs, or where blocks divide k this part's own sums.

`mma` leaves a thread sums of two neighbouring tokens, 8 outputs apart, and in memory outputs are neighbours: written
from there, each is a store of its own. So the sums pass through shared memory, where they lie by token, and those of
warps that divided k are added on the way out. Then each thread has eight neighbouring outputs of a token: it reads
residual and bias, and writes y, 16 bytes at a time. Where N is no multiple of eight, rows of y begin anywhere, and as
many are taken at once as may be.

Parts that are a cluster add up here: each block reads the sums of all from their shared memory, in the order of the
parts, and finishes a share of the tile's outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, PADDING, eights_at_once
from awq_tvm.schedules.cuda.epilogue import MOST, finish_together
from awq_tvm.schedules.cuda.split_k import Share, Tiles
from awq_tvm.schedules.cuda.warp_sum import clear
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


@dataclass(frozen=True)
class _There:
    """The sums that are in shared memory at a time: of some eights of tokens of each warp.

    Attributes:
        floats: all of the memory.
        eights: of a warp.
        first: of those that are there.
        at_once: how many are there.
        tokens: of the block, how many are there.
    """

    floats: Any
    eights: int
    first: int
    at_once: int
    tokens: int


def _meet_cluster() -> None:
    """Emit a barrier of the cluster, and one of the block, which TVM would put elsewhere if it saw none."""
    T.evaluate(T.tvm_storage_sync("shared"))
    ptx.meet_cluster()


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
        own, clustered = self._places_of(held, at_once), self.tiles.division.clustered
        for first in range(0, held.eights, at_once):
            if clustered and first:
                _meet_cluster()  # others may still read what was there before
            else:
                T.evaluate(T.tvm_storage_sync("shared"))
            for tile in range(held.tiles):
                for eight in range(at_once):
                    for d in range(4):
                        at = 4 * (tile * held.eights + first + eight) + d
                        behind = (EIGHT * eight + d % 2) * (self.tile.rows + PADDING) + d // 2 * 8
                        T.buffer_store(floats, sums[at], [own[tile] + behind])
            there = _There(floats, held.eights, first, at_once, self._tokens_at_once(held.eights, at_once))
            if clustered:
                self._meet(there)
            else:
                T.evaluate(T.tvm_storage_sync("shared"))
                self._leave(there)
        if clustered:
            _meet_cluster()  # no block ends while others read its sums

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

    def _leave(self, there: _There) -> None:
        """Emit what becomes of sums that no other block adds to here."""
        own, width = self.own, self._width

        def finish(at: Any, token: Any, row: Any) -> None:
            self._finish(self._read(there, at, row, width), token, row)

        def keep(at: Any, token: Any, row: Any) -> None:
            totals = self._read(there, at, row, _FLOATS)
            place = self.tiles.place(own.number, token, row)
            with T.vectorized(0, _FLOATS) as j:
                T.buffer_store(self.tiles.sums, totals[j], [place + j])

        if isinstance(own.is_part, bool):
            self._each(there, *((_FLOATS, keep) if own.is_part else (width, finish)))
            return
        with T.If(own.is_part):
            with T.Then():
                self._each(there, _FLOATS, keep)
            with T.Else():
                self._each(there, width, finish)

    def _meet(self, there: _There) -> None:
        """Emit the adding up of a cluster's parts, of which each block finishes a share of the outputs."""
        width, parts = self._width, self.tiles.division.parts
        of_parts = T.unroll if isinstance(parts, int) else T.serial

        def add_own(at: Any, _token: Any, row: Any) -> None:
            totals = self._read(there, at, row, _FLOATS)
            words = [T.reinterpret("uint32", totals[i]) for i in range(_FLOATS)]
            ptx.store_shared(there.floats.ptr_to([place(self.tile.rows, at, row)]), words)

        def finish(at: Any, token: Any, row: Any) -> None:
            totals = local("totals", width, "float32")
            clear(totals, width)
            addresses = local("addresses", 2, "uint32")
            with of_parts(0, parts) as part:
                found = local("found", width, "float32")
                for behind in range(0, width, _FLOATS):
                    own = there.floats.ptr_to([place(self.tile.rows, at, row + behind)])
                    T.buffer_store(addresses, T.cuda.cvta_generic_to_shared(own), [0])
                    ptx.map_shared(addresses[1], addresses[0], part)
                    ptx.load_mapped([found[behind + j] for j in range(min(width, _FLOATS))], addresses[1])
                for i in range(width):
                    T.buffer_store(totals, totals[i] + found[i], [i])
            self._finish(totals, token, row)

        if self.tile.k_warps > 1:
            # Here, since the way to another block's shared memory is longer than to one's own.
            T.evaluate(T.tvm_storage_sync("shared"))
            self._each(there, _FLOATS, add_own)
        _meet_cluster()
        self._each(there, width, finish, shared_out=True)

    @property
    def _width(self) -> int:
        """Neighbouring outputs that are finished together."""
        return math.gcd(self.spec.out_features, MOST)

    def _finish(self, totals: Any, token: Any, row: Any) -> None:
        """Emit the outputs of neighbouring sums, of a token and from a row of the tile on."""
        at = self.own.first_token + token, self.own.first_row + row
        finish_together(self.spec, totals, self._width, *at, self.arguments)

    def _each(
        self,
        there: _There,
        width: int,
        emit: Callable[[Any, Any, Any], None],
        shared_out: bool = False,
    ) -> None:
        """Emit something for each of the thread's pieces of neighbouring sums.

        Args:
            there: the sums.
            width: of a piece.
            emit: is given the piece's token among those that are there, its token of the tile, and its first row.
            shared_out: the blocks of the cluster have a share each, instead of all.
        """
        tile, n = self.tile, self.spec.out_features
        across = tile.rows // width
        pieces = across * there.tokens
        parts = self.tiles.division.parts if shared_out else 1
        share = -(-pieces // parts) if isinstance(parts, int) else T.truncdiv(pieces + (parts - 1), parts)

        def one(start: Any, may_be_past: bool) -> None:
            of_share = start + self.thread
            number = self.own.number * share + of_share if shared_out else of_share
            at, row = number // across, number % across * width
            token = at // (EIGHT * there.at_once) * (EIGHT * there.eights) + (
                EIGHT * there.first + at % (EIGHT * there.at_once)
            )
            inside = [self.own.first_token + token < self.tokens]
            if n % tile.rows:
                inside.append(self.own.first_row + row < n)
            if shared_out:
                inside.insert(0, number < pieces)
            if may_be_past:
                inside.insert(0, of_share < share)
            with T.If(functools.reduce(T.And, inside)), T.Then():
                emit(at, token, row)

        if isinstance(share, int):
            for start in range(0, share, tile.threads):
                one(start, start + tile.threads > share)
            return
        with T.serial(0, T.truncdiv(share + (tile.threads - 1), tile.threads)) as turn:
            one(turn * tile.threads, True)

    def _read(self, there: _There, token: Any, row: Any, width: int) -> Any:
        """Emit the sums of a piece, of those that divided k added in their order; returns their registers."""
        totals = local("totals", width, "float32")
        step = min(width, _FLOATS)
        for k in range(self.tile.k_warps):
            found = local("found", width, "float32") if k else totals
            for behind in range(0, width, step):
                at = place(self.tile.rows, k * there.tokens + token, row + behind)
                with T.vectorized(0, step) as j:
                    T.buffer_store(found, there.floats[at + j], [behind + j])
            if k:
                for i in range(width):
                    T.buffer_store(totals, totals[i] + found[i], [i])
        return totals
