"""Attention of many new tokens on the 8 x 8 matrices of Apple's SIMD groups, for the M1 and later.

A threadgroup has a tile of rows (see ``prefill_problem``) and reads the keys that any of them sees once, tile by
tile, into threadgroup memory. A SIMD group multiplies some eights of rows with everything but its operands in
float32; S, P, m, l and O as in ``attention.tile``:

    S[rows, keys] = Q K^T;  O[rows, features] += P V

Rows of keys and values are an odd number of vectors of 16 bytes apart: a matrix's eight rows, and eight vectors that
lanes copy one after the other, meet every bank once. Tiles that no row sees are not read (by a threadgroup) or not
multiplied (by a SIMD group). The roof is arithmetic; the idea that of flash attention 2 (arXiv:2307.08691).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import vector_length
from awq_tvm.schedules.attention.gpu.lanes import WARP, as_words, held, simd_shuffle_xor
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
from awq_tvm.schedules.attention.gpu.simdgroup_prefill_config import SimdgroupPrefillConfig, ThreadgroupPlan
from awq_tvm.schedules.attention.gpu.simdgroup_rows import SimdgroupRows, meet
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import i32
from awq_tvm.schedules.gpu.threads import shared_out
from awq_tvm.schedules.metal.config import FLOAT_BYTES, HALF_BYTES, SIDE

_VECTOR_BYTES = 16

HAND_THREADED = "hand_threaded"
"""TVM puts no barriers of its own into a statement with this attribute. It would, and cannot within a condition."""


def simdgroup_prefill_ragged(shape: AttentionShape, config: SimdgroupPrefillConfig) -> tirx.PrimFunc:
    """New tokens against one another; float16, up to 256 features."""
    return ragged_function(shape, lambda queries, keys: _launch(queries, keys, config))


def simdgroup_prefill_paged(shape: AttentionShape, config: SimdgroupPrefillConfig) -> tirx.PrimFunc:
    """New tokens against those in the cache."""
    return paged_function(shape, lambda queries, keys: _launch(queries, keys, config))


def _launch(queries: Queries, keys: NewKeys | CachedKeys, config: SimdgroupPrefillConfig) -> None:
    plan = ThreadgroupPlan(queries.shape, config)

    def start(thread: Any) -> Body:
        memory = _Memory(plan)

        def emit(rows: Rows, seen: KeysOfRows) -> None:
            with T.attr(tirx.const(0), HAND_THREADED, 0):
                _Threadgroup(queries, config, plan, memory, rows, seen, thread).emit()

        return emit

    by_tiles(queries, keys, config.tile_rows, config.tile_keys, config.threads, start)


class _Memory:
    """The threadgroup's memory, as vectors of 16 bytes and as numbers."""

    def __init__(self, plan: ThreadgroupPlan) -> None:
        length = plan.total // _VECTOR_BYTES
        self.vectors = IRBuilder.name("staged", T.alloc_buffer((length,), "uint32x4", scope="shared"))
        self.halves = self._view("halves", "float16", plan.total // HALF_BYTES)
        self.floats = self._view("floats", "float32", plan.total // FLOAT_BYTES)

    def _view(self, name: str, dtype: str, length: int) -> Any:
        # By an address: of views of the same data TVM asks that they hold one kind of element.
        data = T.ptr_byte_offset(self.vectors.data, 0, dtype)
        return IRBuilder.name(name, T.decl_buffer((length,), dtype, data=data, scope="shared"))


@dataclass(frozen=True)
class _Threadgroup:
    """One threadgroup's work."""

    queries: Queries
    config: SimdgroupPrefillConfig
    plan: ThreadgroupPlan
    memory: _Memory
    rows: Rows
    keys: KeysOfRows
    thread: Any

    def emit(self) -> None:
        """Emit it. Whatever a barrier stands in is the same for all threads."""
        config, tile_keys = self.config, self.config.tile_keys
        lane, simdgroup = held("lane", self.thread % WARP), held("simdgroup", self.thread // WARP)
        first = held("own_first", simdgroup * config.own_rows)
        self._copy_queries()
        own = SimdgroupRows(
            config,
            self.plan,
            self.rows,
            self.keys.seen,
            simdgroup,
            first,
            lane,
            self.memory.floats,
            self.memory.halves,
        )
        start, end = self.keys.span(self.rows, lane, config.tile_rows, simd_shuffle_xor)
        query_row = self.plan.queries_at // _VECTOR_BYTES // self.plan.stride + first
        # Queries have come.
        _barrier()
        if config.held_queries:
            own.hold_queries(lambda eight, features: self._matrix(query_row + eight * SIDE, features))
        else:
            own.read_queries_from(lambda eight, features: self._matrix(query_row + eight * SIDE, features))
        scale = self.queries.scale()
        self.keys.ask_tile(start, end, tile_keys)
        tiles = tirx.truncdiv(tirx.max(end - start, i32(0)) + i32(tile_keys - 1), i32(tile_keys))
        with T.serial(tiles) as number:
            base = held("base", start + number * tile_keys)
            # Every SIMD group has its queries, or has done with the tile before.
            _barrier()
            self._copy(base, end)
            self.keys.ask_tile(base + tile_keys, end, tile_keys)
            _barrier()
            with T.If(own.see_some(base)), T.Then():
                own.score(lambda run, features: self._matrix(run * SIDE, features))
                own.mask(base)
                own.soften(scale)
                own.gather(lambda run, features: self._matrix(tile_keys + run * SIDE, features))
        self._store(own, simdgroup, first, lane)

    def _matrix(self, row: Any, features: int) -> Any:
        """The address of eight features of a row of keys, values or queries, and of seven rows more."""
        return self.memory.halves.ptr_to([(row * self.plan.stride + features) * SIDE])

    def _copy_queries(self) -> None:
        shape, plan, config = self.queries.shape, self.plan, self.config
        vectors = shape.head_dim // vector_length(shape)
        words = as_words(self.queries.q, self.queries.total * (shape.heads * vectors))
        at = plan.queries_at // _VECTOR_BYTES
        for number in shared_out(config.tile_rows * vectors, self.thread, config.threads):
            row, vector = number // vectors, number % vectors
            source = held("query_at", self.rows.vector(self.rows.inside(row), vector))
            found = words[T.Ramp(source * 4, 1, 4)]
            T.buffer_store(self.memory.vectors, found, [at + row * plan.stride + vector])

    def _copy(self, base: Any, end: Any) -> None:
        """Emit the copies of a tile; keys past the last are copied as the last, and counted for nothing."""
        config, plan = self.config, self.plan
        vectors = self.queries.shape.head_dim // vector_length(self.queries.shape)
        for run in range(config.tile_keys // PAGE_SIZE):
            for number in shared_out(PAGE_SIZE * vectors, self.thread, config.threads):
                row, vector = number // vectors, number % vectors
                key = held("key", tirx.min(base + (run * PAGE_SIZE + row), end - 1))
                for half in range(2):
                    into = half * config.tile_keys + run * PAGE_SIZE + row
                    words, at = self.keys.place(half, run, key, vector)
                    found = words[T.Ramp(held("from", at) * 4, 1, 4)]
                    T.buffer_store(self.memory.vectors, found, [into * plan.stride + vector])

    def _store(self, own: SimdgroupRows, simdgroup: Any, first: Any, lane: Any) -> None:
        """Emit the stores of outputs and log-sums; outputs, eight rows at a time, by way of threadgroup memory."""
        shape, plan, floats, output = self.queries.shape, self.plan, self.memory.floats, self.queries.output
        own.finish()
        # Every SIMD group has done with the last tile, where the sums go.
        _barrier()
        base = simdgroup * (plan.own_sums // FLOAT_BYTES)
        fours = shape.head_dim // 4
        for eight in range(self.config.row_eights):
            if eight:
                # The eight before was read.
                meet()
            own.leave(eight, lambda features: floats.ptr_to([base + features * SIDE]))
            meet()
            for number in shared_out(SIDE * fours, lane, WARP):
                row, four = number // fours, number % fours
                place = held("tile_row", first + (eight * SIDE + row))
                with T.If(place < self.rows.count), T.Then():
                    found = floats[T.Ramp(base + row * plan.sums_stride + four * 4, 1, 4)]
                    into = [*self.rows.place(place), T.Ramp(four * 4, 1, 4)]
                    T.buffer_store(output, found.astype("float16x4"), into)
        own.store_log_sums(self.queries.log_sum)


def _barrier() -> None:
    T.evaluate(T.tvm_storage_sync("shared"))
