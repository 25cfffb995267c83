"""Attention of many new tokens on CUDA's tensor cores, for compute capability 8.0 and later.

A block has a tile of rows (see ``prefill_problem``) and reads the keys that any of them sees once, tile by tile. For
16 rows of a warp, with ``mma.m16n8k16`` and everything but its operands in float32:

    S[rows, keys] = Q K^T;  m, l and O as in ``attention.tile``;  O[rows, features] += P V

S in registers, rounded in pairs, is P as the left operand, so weights never leave a warp. Keys and values are copied
to shared memory asynchronously while the tile before is multiplied, and get from there to registers by ``ldmatrix``,
values transposed. Rows there are an odd number of vectors apart, which has no two lanes of a load meet in a bank, as
a swizzle would, and leaves every address a constant away from one register. Masks are reckoned only for tiles in
which some row of the warp does not see some key; tiles that none sees are not read (by a block) or not multiplied (by
a warp). The roof is arithmetic; the idea that of flash attention 2 (arXiv:2307.08691).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import vector_length
from awq_tvm.schedules.attention.gpu.lanes import WARP, as_words, held, shfl_xor
from awq_tvm.schedules.attention.gpu.prefill_problem import (
    Body,
    CachedKeys,
    KeysOfRows,
    NewKeys,
    Queries,
    Rows,
    by_tiles,
    paged_function,
    ragged_function,
)
from awq_tvm.schedules.attention.gpu.tensor_prefill_config import (
    BLOCK_ROWS,
    STAGES,
    TensorPrefillConfig,
    shared_stride,
)
from awq_tvm.schedules.attention.gpu.tensor_rows import RowBlocks
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import i32
from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.threads import shared_out


def tensor_prefill_ragged(shape: AttentionShape, config: TensorPrefillConfig) -> tirx.PrimFunc:
    """New tokens against one another; float16 or bfloat16, a multiple of 16 features up to 256."""
    return ragged_function(shape, lambda queries, keys: _launch(queries, keys, config))


def tensor_prefill_paged(shape: AttentionShape, config: TensorPrefillConfig) -> tirx.PrimFunc:
    """New tokens against those in the cache."""
    return paged_function(shape, lambda queries, keys: _launch(queries, keys, config))


def _launch(queries: Queries, keys: NewKeys | CachedKeys, config: TensorPrefillConfig) -> None:
    def start(thread: Any) -> Body:
        shared = _Shared(queries.shape, config)
        return lambda rows, seen: _Block(queries, config, shared, rows, seen, thread).emit()

    by_tiles(queries, keys, config.tile_rows, config.tile_keys, config.threads, start)


class _Shared:
    """The block's shared memory, in rows of features: keys and values of each stage, queries, and at last outputs."""

    def __init__(self, shape: AttentionShape, config: TensorPrefillConfig) -> None:
        self.vectors, self._stride = shape.head_dim // vector_length(shape), shared_stride(shape)
        length = config.shared_rows() * self._stride * 4
        self.words = IRBuilder.name("staged", T.alloc_buffer((length,), "uint32", scope="shared.dyn"))

    def at(self, row: Any, vector: Any) -> Any:
        """The first of the four words of a vector."""
        return (row * self._stride + vector) * 4

    def pointer(self, row: Any, vector: Any) -> Any:
        """The address of a vector."""
        return self.words.ptr_to([self.at(row, vector)])


@dataclass(frozen=True)
class _Block:
    """One block's work."""

    queries: Queries
    config: TensorPrefillConfig
    shared: _Shared
    rows: Rows
    keys: KeysOfRows
    thread: Any

    def emit(self) -> None:
        """Emit it."""
        config, rows, tile_keys = self.config, self.rows, self.config.tile_keys
        lane, warp = held("lane", self.thread % WARP), held("warp", self.thread // WARP)
        first = held("warp_row", warp * (BLOCK_ROWS * config.row_blocks))
        self._copy_queries()
        ptx.commit_copies()
        start, end = self.keys.span(rows, lane, config.tile_rows, shfl_xor)
        with T.If(start < end), T.Then():
            self.keys.ask_tile(start, end, tile_keys)
            self._copy(start, end, i32(0))
        ptx.commit_copies()
        blocks = RowBlocks(self.queries.shape, config, rows, self.keys.seen, first, lane)
        if config.held_queries:
            ptx.wait_for_copies(1)
            T.evaluate(T.tvm_storage_sync("shared"))
            blocks.hold_queries(lambda row, vector: self._query_pointer(row, vector))
        scale = self.queries.scale()
        self.keys.ask_tile(start + tile_keys, end, tile_keys)
        tiles = tirx.truncdiv(tirx.max(end - start, i32(0)) + i32(tile_keys - 1), i32(tile_keys))
        with T.serial(tiles) as number:
            base = held("base", start + number * tile_keys)
            stage = held("stage", number % STAGES)
            ptx.wait_for_copies(0)
            # After it every thread has waited for its copies of this tile, and has done with the tile before.
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.If(base + tile_keys < end), T.Then():
                self._copy(base + tile_keys, end, 1 - stage)
                ptx.commit_copies()
                self.keys.ask_tile(base + 2 * tile_keys, end, tile_keys)
            with T.If(blocks.see_some(base)), T.Then():
                self._multiply(blocks, base, stage, scale, lane)
        self._store(blocks, first, lane)

    def _query_pointer(self, row: Any, vector: Any) -> Any:
        return self.shared.pointer(row + self.config.queries_at(), vector)

    def _copy_queries(self) -> None:
        shape, vectors, config = self.queries.shape, self.shared.vectors, self.config
        words = as_words(self.queries.q, self.queries.total * (shape.heads * vectors))
        for number in shared_out(config.tile_rows * vectors, self.thread, config.threads):
            row, vector = number // vectors, number % vectors
            source = words.ptr_to([self.rows.vector(self.rows.inside(row), vector) * 4])
            ptx.copy_async(self._query_pointer(row, vector), source)

    def _copy(self, base: Any, end: Any, stage: Any) -> None:
        """Emit the copies of a tile; keys past the last are copied as the last, and counted for nothing."""
        config, vectors = self.config, self.shared.vectors
        for run in range(config.tile_keys // PAGE_SIZE):
            for number in shared_out(PAGE_SIZE * vectors, self.thread, config.threads):
                row, vector = number // vectors, number % vectors
                key = held("key", tirx.min(base + (run * PAGE_SIZE + row), end - 1))
                for half in range(2):
                    into = stage * (2 * config.tile_keys) + (half * config.tile_keys + run * PAGE_SIZE + row)
                    words, at = self.keys.place(half, run, key, vector)
                    ptx.copy_async(self.shared.pointer(into, vector), words.ptr_to([at * 4]))

    def _multiply(self, blocks: RowBlocks, base: Any, stage: Any, scale: Any, lane: Any) -> None:
        """Emit a warp's work on a tile that has arrived."""
        tile_keys = self.config.tile_keys
        first = held("tile_row", stage * (2 * tile_keys))
        # Of four matrices, 8 keys and then 8 more, of 8 features and 8 more; of values the other way about.
        key_row, key_vector = lane % 8 + lane // 16 * 8, lane // 8 % 2
        value_row, value_vector = lane % 16 + tile_keys, lane // 16
        if not self.config.held_queries:
            blocks.read_queries_from(lambda row, vector: self._query_pointer(row, vector))
        key = held("key_at", self.shared.at(first + key_row, key_vector))
        value = held("value_at", self.shared.at(first + value_row, value_vector))
        words = self.shared.words
        blocks.score(lambda run, step: words.ptr_to([key + self.shared.at(run * PAGE_SIZE, 2 * step)]))
        blocks.mask(base)
        blocks.soften(scale)
        blocks.gather(lambda run, step: words.ptr_to([value + self.shared.at(run * PAGE_SIZE, 2 * step)]))

    def _store(self, blocks: RowBlocks, first: Any, lane: Any) -> None:
        """Emit the stores of outputs and log-sums; outputs by way of shared memory, to be 16 bytes each."""
        shape, vectors, shared = self.queries.shape, self.shared.vectors, self.shared
        blocks.finish()
        ptx.wait_for_copies(0)
        T.evaluate(T.tvm_storage_sync("shared"))
        blocks.leave(lambda row, vector: shared.at(first + row, vector), shared.words)
        # A warp's would do, but TVM would put in this one, and cannot within a condition.
        T.evaluate(T.tvm_storage_sync("shared"))
        words = as_words(self.queries.output, self.queries.total * (shape.heads * vectors))
        for number in shared_out(BLOCK_ROWS * self.config.row_blocks * vectors, lane, WARP):
            row, vector = first + number // vectors, number % vectors
            with T.If(row < self.rows.count), T.Then():
                into = held("into", self.rows.vector(row, vector) * 4)
                found = shared.words[T.Ramp(shared.at(row, vector), 1, 4)]
                T.buffer_store(words, found, [T.Ramp(into, 1, 4)])
        blocks.store_log_sums(self.queries.log_sum)
