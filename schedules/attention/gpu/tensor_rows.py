"""A warp's rows of prefill on tensor cores, in registers: Q, S, then P, O, m and l, in blocks of 16 rows.

A lane has of a block's S and O the columns 2 c and 2 c + 1 of each eight, c = lane % 4, in the rows lane / 4 and, as
what is called its other half here, lane / 4 + 8.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import (
    any_lane,
    combine_lanes,
    held,
    registers,
    shfl_xor,
)
from awq_tvm.schedules.attention.gpu.prefill_problem import Rows
from awq_tvm.schedules.attention.gpu.tensor_prefill_config import BLOCK_ROWS, TensorPrefillConfig
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.attention.tile import MASKED, NOTHING, f32
from awq_tvm.schedules.cuda import ptx

_EIGHT, _SIXTEEN = 8, 16
"""Columns of a product, and what it sums over."""

_QUAD = (1, 2)
"""Distances between the lanes that share a row."""

_COLUMN = (4, 8, 16)
"""Distances between those that share a column."""

Pointer = Callable[[Any, Any], Any]
"""(row, vector of 16 bytes) or (run of 16 keys, 16 features) -> an address in shared memory."""


class RowBlocks:
    """Emits what the warp keeps of its rows from tile to tile.

    Args:
        shape: of the attention.
        config: sizes.
        rows: of the block.
        seen: of ``KeysOfRows``.
        first: row of the warp in the block.
        lane: of the thread.
    """

    def __init__(
        self,
        shape: AttentionShape,
        config: TensorPrefillConfig,
        rows: Rows,
        seen: Callable[[Any], tuple[Any | None, Any]],
        first: Any,
        lane: Any,
    ) -> None:
        self._shape, self._config, self._rows, self._first = shape, config, rows, first
        self._row, self._column = held("row", lane // 4), held("column", lane % 4)
        self._lane = lane
        self._blocks, self._steps = config.row_blocks, shape.head_dim // _SIXTEEN
        self._halves = 2 * config.row_blocks
        self._maximum, self._total = registers("maximum", self._halves), registers("total", self._halves)
        self._sums = registers("sums", self._blocks * self._steps * 8)
        self._queries = registers("queries", self._blocks * self._steps * 4, "uint32")
        self._scores: Any = None
        self._query: Callable[[int, int], list[Any]] = self._held_query
        for half in range(self._halves):
            T.buffer_store(self._maximum, f32(NOTHING), [half])
            T.buffer_store(self._total, f32(0), [half])
        with T.unroll(self._blocks * self._steps * 8) as i:
            T.buffer_store(self._sums, f32(0), [i])
        self._limit(seen)

    def _limit(self, seen: Callable[[Any], tuple[Any | None, Any]]) -> None:
        """Emit which keys a lane's rows see, and which all rows of the warp see, and any."""
        self._high = registers("high", self._halves, "int32")
        self._low = registers("low", self._halves, "int32") if self._shape.sliding_window else None
        for half in range(self._halves):
            low, high = seen(self._rows.inside(self._own(half)))
            T.buffer_store(self._high, high, [half])
            if self._low is not None:
                T.buffer_store(self._low, low, [half])
        self._all_before = self._over_warp("all_before", self._high, tirx.min)
        self._any_before = self._over_warp("any_before", self._high, tirx.max)
        if self._low is not None:
            self._all_from = self._over_warp("all_from", self._low, tirx.max)
            self._any_from = self._over_warp("any_from", self._low, tirx.min)

    def _over_warp(self, name: str, of: Any, choose: Callable[[Any, Any], Any]) -> Any:
        found = registers(name, 1, "int32")
        T.buffer_store(found, of[0], [0])
        for half in range(1, self._halves):
            T.buffer_store(found, choose(found[0], of[half]), [0])
        combine_lanes(found, 0, choose, shfl_xor, _COLUMN)
        return found[0]

    def _own(self, half: int) -> Any:
        """The lane's row in the block."""
        return self._first + (self._row + _EIGHT * half)

    def hold_queries(self, pointer: Pointer) -> None:
        """Emit the loads of Q to registers, to stay there."""
        for block in range(self._blocks):
            for step in range(self._steps):
                own = [self._queries[4 * (block * self._steps + step) + i] for i in range(4)]
                ptx.load_matrices(own, self._query_at(pointer, block, step))

    def read_queries_from(self, pointer: Pointer) -> None:
        """Have Q read from shared memory whenever it is multiplied."""

        def read(block: int, step: int) -> list[Any]:
            words = registers("query", 4, "uint32")
            own = [words[i] for i in range(4)]
            ptx.load_matrices(own, self._query_at(pointer, block, step))
            return own

        self._query = read

    def _query_at(self, pointer: Pointer, block: int, step: int) -> Any:
        row = self._first + (BLOCK_ROWS * block + self._lane % 16)
        return pointer(row, self._lane // 16 + 2 * step)

    def _held_query(self, block: int, step: int) -> list[Any]:
        return [self._queries[4 * (block * self._steps + step) + i] for i in range(4)]

    def see_some(self, base: Any) -> Any:
        """Whether there are rows, and any sees a key of the tile."""
        seen = T.And(self._first < self._rows.count, base < self._any_before)
        if self._low is None:
            return seen
        return T.And(seen, base + self._config.tile_keys > self._any_from)

    def score(self, pointer: Pointer) -> None:
        """Emit S of a tile, [blocks, eights of keys, 4]."""
        eights = self._config.tile_keys // _EIGHT
        self._scores = registers("scores", self._blocks * eights * 4)
        with T.unroll(self._blocks * eights * 4) as i:
            T.buffer_store(self._scores, f32(0), [i])
        for step in range(self._steps):
            left = [self._query(block, step) for block in range(self._blocks)]
            for run in range(eights // 2):
                words = registers("keys", 4, "uint32")
                ptx.load_matrices([words[i] for i in range(4)], pointer(run, step))
                for block in range(self._blocks):
                    for eight in range(2):
                        at = self._at(block, 2 * run + eight, 0)
                        own = [self._scores[at + i] for i in range(4)]
                        right = [words[2 * eight], words[2 * eight + 1]]
                        ptx.mma(own, left[block], right, self._shape.dtype)

    def _at(self, block: int, eight: int, i: int) -> int:
        return 4 * (block * (self._config.tile_keys // _EIGHT) + eight) + i

    def mask(self, base: Any) -> None:
        """Emit the masking of keys that a row does not see, if some row does not see some key."""
        keys = self._config.tile_keys
        wanted = base + keys > self._all_before
        if self._low is not None:
            wanted = T.Or(wanted, base < self._all_from)
        with T.If(wanted), T.Then():
            own = held("own_key", base + 2 * self._column)
            for half in range(self._halves):
                for eight in range(keys // _EIGHT):
                    for i in range(2):
                        key, at = own + (_EIGHT * eight + i), self._at(half // 2, eight, half % 2 * 2 + i)
                        seen = key < self._high[half]
                        if self._low is not None:
                            seen = T.And(seen, key >= self._low[half])
                        T.buffer_store(self._scores, T.Select(seen, self._scores[at], f32(MASKED)), [at])

    def soften(self, scale: Any) -> None:
        """Emit what turns S into P, not rounded yet, and brings m, l and O up to date."""
        eights = self._config.tile_keys // _EIGHT
        grown, shrinks = registers("grown", 1, "bool"), registers("shrinks", self._halves)
        T.buffer_store(grown, tirx.const(False, "bool"), [0])
        for half in range(self._halves):
            own = [self._at(half // 2, eight, half % 2 * 2 + i) for eight in range(eights) for i in range(2)]
            highest = registers("highest", 1)
            T.buffer_store(highest, self._scores[own[0]], [0])
            for at in own[1:]:
                T.buffer_store(highest, T.max(highest[0], self._scores[at]), [0])
            combine_lanes(highest, 0, T.max, shfl_xor, _QUAD)
            T.buffer_store(highest, T.max(self._maximum[half], highest[0] * scale), [0])
            T.buffer_store(grown, T.Or(grown[0], highest[0] > self._maximum[half]), [0])
            ptx.exp2(shrinks[half], self._maximum[half] - highest[0])
            T.buffer_store(self._maximum, highest[0], [half])
            T.buffer_store(self._total, self._total[half] * shrinks[half], [half])
            for at in own:
                ptx.exp2(self._scores[at], self._scores[at] * scale - highest[0])
                T.buffer_store(self._total, self._total[half] + self._scores[at], [half])
        # After a few tiles hardly any row finds a higher score.
        with T.If(any_lane(grown[0])), T.Then():
            for half in range(self._halves):
                for eight in range(2 * self._steps):
                    for i in range(2):
                        at = self._sum_at(half, eight) + i
                        T.buffer_store(self._sums, self._sums[at] * shrinks[half], [at])

    def _sum_at(self, half: int, eight: int) -> int:
        """Where a lane's two sums of an eight of features are."""
        return 4 * (half // 2 * 2 * self._steps + eight) + half % 2 * 2

    def gather(self, pointer: Pointer) -> None:
        """Emit O += P V."""
        for run in range(self._config.tile_keys // _SIXTEEN):
            weights = registers("weights", self._blocks * 4, "uint32")
            for block in range(self._blocks):
                for i in range(4):
                    at = self._at(block, 2 * run + i // 2, i % 2 * 2)
                    two = self._scores[at], self._scores[at + 1]
                    ptx.pack(weights[4 * block + i], *two, self._shape.dtype)
            for step in range(self._steps):
                words = registers("values", 4, "uint32")
                ptx.load_transposed_matrices([words[i] for i in range(4)], pointer(run, step))
                for block in range(self._blocks):
                    for eight in range(2):
                        at = self._sum_at(2 * block, 2 * step + eight)
                        own = [self._sums[at + i] for i in range(4)]
                        left = [weights[4 * block + i] for i in range(4)]
                        ptx.mma(own, left, [words[2 * eight], words[2 * eight + 1]], self._shape.dtype)

    def finish(self) -> None:
        """Emit the sum of l over the lanes of a row, and the division of O; a row that saw no key has 0."""
        for half in range(self._halves):
            combine_lanes(self._total, half, operator.add, shfl_xor, _QUAD)
            seen = self._total[half] > f32(0)
            share = held(
                "share", T.Select(seen, f32(1) / T.Select(seen, self._total[half], f32(1)), f32(0)), "float32"
            )
            for eight in range(2 * self._steps):
                for i in range(2):
                    at = self._sum_at(half, eight) + i
                    T.buffer_store(self._sums, self._sums[at] * share, [at])

    def leave(self, place: Pointer, shared: Any) -> None:
        """Emit the stores of O, rounded, to shared memory; ``place`` is where a row's vector of 8 features begins."""
        pair = registers("pair", 1, "uint32")
        for half in range(self._halves):
            own = held("own_at", place(self._row + _EIGHT * half, 0) + self._column)
            for eight in range(2 * self._steps):
                at = self._sum_at(half, eight)
                ptx.pack(pair[0], self._sums[at], self._sums[at + 1], self._shape.dtype)
                T.buffer_store(shared, pair[0], [own + 4 * eight])

    def store_log_sums(self, log_sum: Any) -> None:
        """Emit log_sum = m + log2(l)."""
        for half in range(self._halves):
            row = held("own_row", self._own(half))
            with T.If(T.And(self._column == 0, row < self._rows.count)), T.Then():
                seen, total = self._total[half] > f32(0), self._total[half]
                found = self._maximum[half] + tirx.log2(T.Select(seen, total, f32(1)))
                T.buffer_store(log_sum, T.Select(seen, found, f32(NOTHING)), [*self._rows.place(row)])
