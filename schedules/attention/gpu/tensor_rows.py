"""A warp's rows of prefill on tensor cores, in registers: Q, S, then P, and O, in blocks of 16 rows.

Of a block, which is two eights of ``SoftRows``, a lane has of S and O the columns and rows that ``mma`` gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import any_lane, held, registers, shfl_xor
from awq_tvm.schedules.attention.gpu.prefill_problem import Rows, Seen
from awq_tvm.schedules.attention.gpu.soft_rows import EIGHT, SoftRows
from awq_tvm.schedules.attention.gpu.tensor_prefill_config import BLOCK_ROWS, TensorPrefillConfig
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.attention.tile import f32
from awq_tvm.schedules.cuda import ptx

_SIXTEEN = 16
"""What a product sums over."""

Pointer = Callable[[Any, Any], Any]
"""(row, vector of 16 bytes) or (run of 16 keys, 16 features) -> an address in shared memory."""


class RowBlocks(SoftRows):
    """Emits what the warp keeps of its rows from tile to tile.

    Args:
        shape: of the attention.
        config: sizes.
        rows: of the block.
        seen: of ``KeysOfRows``.
        first: row of the warp in the block.
        lane: of the thread.
    """

    exchange = staticmethod(shfl_xor)

    def __init__(
        self,
        shape: AttentionShape,
        config: TensorPrefillConfig,
        rows: Rows,
        seen: Seen,
        first: Any,
        lane: Any,
    ) -> None:
        super().__init__(rows, first, lane, 2 * config.row_blocks, config.tile_keys)
        self._shape, self._lane = shape, lane
        self._blocks, self._steps = config.row_blocks, shape.head_dim // _SIXTEEN
        self._sums = registers("sums", self._blocks * self._steps * 8)
        self._queries = registers("queries", self._blocks * self._steps * 4, "uint32")
        self._query: Callable[[int, int], list[Any]] = self._held_query
        with T.unroll(self._blocks * self._steps * 8) as i:
            T.buffer_store(self._sums, f32(0), [i])
        self.limit(seen)

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

    def score(self, pointer: Pointer) -> None:
        """Emit S of a tile, [blocks, eights of keys, 4]."""
        eights = self._tile_keys // EIGHT
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
                        at = self._register(block, 2 * run + eight, 0)
                        own = [self._scores[at + i] for i in range(4)]
                        right = [words[2 * eight], words[2 * eight + 1]]
                        ptx.mma(own, left[block], right, self._shape.dtype)

    def _register(self, block: int, eight: int, i: int) -> int:
        """Where the ``i``th of the four scores is that ``mma`` gives a lane of 16 rows and eight keys."""
        return 4 * (block * (self._tile_keys // EIGHT) + eight) + i

    def _at(self, eight: int, keys: int, i: int) -> int:
        return self._register(eight // 2, keys, eight % 2 * 2 + i)

    def _exp2(self, into: Any, at: int, value: Any) -> None:
        ptx.exp2(into[at], value)

    def _any_lane(self, holds: Any) -> Any:
        return any_lane(holds)

    def _scale(self, eight: int, factor: Any) -> None:
        for features in range(2 * self._steps):
            for i in range(2):
                at = self._sum_at(eight, features) + i
                T.buffer_store(self._sums, self._sums[at] * factor, [at])

    def _sum_at(self, eight: int, features: int) -> int:
        """Where a lane's two sums of an eight of rows and one of features are."""
        return 4 * (eight // 2 * 2 * self._steps + features) + eight % 2 * 2

    def gather(self, pointer: Pointer) -> None:
        """Emit O += P V."""
        for run in range(self._tile_keys // _SIXTEEN):
            weights = registers("weights", self._blocks * 4, "uint32")
            for block in range(self._blocks):
                for i in range(4):
                    at = self._register(block, 2 * run + i // 2, i % 2 * 2)
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

    def leave(self, place: Pointer, shared: Any) -> None:
        """Emit the stores of O, rounded, to shared memory; ``place`` is where a row's vector of 8 features begins."""
        pair = registers("pair", 1, "uint32")
        for eight in range(self._eights):
            own = held("own_at", place(self._row + EIGHT * eight, 0) + self._column)
            for features in range(2 * self._steps):
                at = self._sum_at(eight, features)
                ptx.pack(pair[0], self._sums[at], self._sums[at + 1], self._shape.dtype)
                T.buffer_store(shared, pair[0], [own + 4 * features])
