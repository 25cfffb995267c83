"""Attention of one new token a sequence to its pages on CUDA's tensor cores, for compute capability 8.0 and later.

What lanes compute alone in ``decode`` takes up to as many instructions as an SM can issue while it reads. Here the
query heads of the group are one side of ``mma.m16n8k16``, and a page of 16 keys is a warp's turn:

    S[heads, keys] = Q K^T          Q is the left operand, half of it nothing for groups of up to eight heads
    O^T[features, heads] += V^T P^T V^T is the left operand

A lane's registers of S, rounded in pairs, are its registers of P^T as the right operand. Which features
come first within a product does not matter if both sides agree, nor does it which feature a row of V^T is. So they
are numbered such that a lane's part of Q, K and V is 16 bytes in a row, loaded straight to registers, and all that V
takes is to put the halves of two keys side by side. Sums, m and l are float32; how contexts are divided, and how
warps and blocks meet, is as in ``decode``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import EIGHT, TensorDecodeConfig, vector_length
from awq_tvm.schedules.attention.gpu.lanes import (
    WARP,
    as_words,
    combine_lanes,
    held,
    load_vector,
    registers,
    shfl,
    shfl_xor,
)
from awq_tvm.schedules.attention.gpu.meeting import Meeting
from awq_tvm.schedules.attention.gpu.problem import PageWalk, Problem, decode_function
from awq_tvm.schedules.attention.gpu.splits import Splits, Whole
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import MASKED, NOTHING, f32, i32
from awq_tvm.schedules.cuda import ptx

LEAST_ARCH = 80
MOST_FEATURES = 256
"""Beyond, the sums do not fit in registers."""

_QUAD = 4
"""Lanes that share a row of a product."""

_LOW, _HIGH = 0x5410, 0x7632
"""What takes the low, or the high, halves of two words."""


def tensor_decode_paged(shape: AttentionShape, config: TensorDecodeConfig) -> tirx.PrimFunc:
    """See ``Problem``; float16 or bfloat16, up to ``MOST_FEATURES``."""
    return decode_function(
        shape, config.blocks, lambda problem, splits: _Kernel(problem, config).launch(splits)
    )


@dataclass(frozen=True)
class _Kernel:
    """The kernel that reads pages."""

    problem: Problem
    config: TensorDecodeConfig

    def launch(self, splits: Splits | Whole) -> None:
        """Emit it."""
        problem, shape, config = self.problem, self.problem.shape, self.config
        with (
            T.launch_thread("blockIdx.x", problem.batch) as sequence,
            T.launch_thread("blockIdx.y", shape.kv_heads) as kv_head,
            T.launch_thread("blockIdx.z", splits.count) as split,
            T.launch_thread("threadIdx.x", config.threads) as thread,
        ):
            start, end = splits.run(split, *problem.span(sequence))
            with T.If(T.Or(start < end, split == 0)), T.Then():
                warp = _Warp(shape, config, thread)
                first = problem.first_seen(sequence)
                queries = self._queries(warp, sequence, kv_head)
                found = _Softmax(shape, config.eights)
                self._read(warp, found, queries, sequence, kv_head, first, start, end)
                meeting = Meeting(shape, config.key_warps)
                found.leave(warp, meeting)
                meeting.finish(thread, config.threads, (sequence, kv_head, split), splits)

    def _queries(self, warp: _Warp, sequence: Any, kv_head: Any) -> Any:
        """Emit the loads of a lane's part of Q, [eights, blocks of 32 features, 4] words.

        Heads beyond the group are read as the last, and not stored; features beyond the head's are zero.
        """
        shape, vectors = self.problem.shape, warp.vectors
        flat = as_words(self.problem.q, self.problem.q.shape[0] * (shape.heads * vectors))
        queries = registers("queries", self.config.eights * warp.key_blocks * 4, "uint32")
        for eight in range(self.config.eights):
            head = warp.head(warp.row, eight)
            row = sequence * shape.heads + kv_head * shape.group + tirx.min(head, i32(shape.group - 1))
            for block in range(warp.key_blocks):
                at = 4 * (eight * warp.key_blocks + block)
                load_vector(queries, at, flat, row * vectors + warp.vector(_QUAD, block))
                if _QUAD * (block + 1) > vectors:
                    there = _QUAD * block + warp.column < vectors
                    for i in range(at, at + 4):
                        T.buffer_store(queries, T.Select(there, queries[i], tirx.const(0, "uint32")), [i])
        return queries

    def _read(
        self,
        warp: _Warp,
        found: _Softmax,
        queries: Any,
        sequence: Any,
        kv_head: Any,
        first: Any,
        start: Any,
        end: Any,
    ) -> None:
        """Emit the loop over the warp's pages."""
        problem, shape, vectors = self.problem, self.problem.shape, warp.vectors
        half = shape.kv_heads * PAGE_SIZE * vectors
        flat = as_words(problem.history.pages.buffer, problem.history.pages.count * (2 * half))
        turn = PAGE_SIZE * self.config.key_warps
        walk = PageWalk(problem, sequence, start, end, turn, warp.key_warp * PAGE_SIZE)
        scale = problem.scale()

        def visit(base: Any, ask: Callable[[], None]) -> None:
            page = held("page_at", walk.page[0] * i32(2 * half) + kv_head * (PAGE_SIZE * vectors))
            # Keys beyond the last are read as the last, and count for nothing.
            last = held("last", end - 1 - base)

            def load(name: str, rows: list[Any], across: int, at: Any) -> Any:
                blocks = -(-vectors // across)
                words = registers(name, len(rows) * blocks * 4, "uint32")
                for r, row in enumerate(rows):
                    row_at = held("row_at", at + tirx.min(row, last) * vectors)
                    for block in range(blocks):
                        load_vector(
                            words, 4 * (r * blocks + block), flat, row_at + warp.vector(across, block)
                        )
                return words

            keys = load("keys", [warp.row, warp.row + EIGHT], _QUAD, page)
            value_rows = [2 * warp.column + one for one in (0, 1, EIGHT, EIGHT + 1)]
            values = load("values", value_rows, EIGHT, page + half)
            ask()
            scores = found.score(warp, queries, keys)
            weights = found.soften(warp, scores, scale, base, first, end)
            found.gather(warp, values, weights)

        walk.each(visit)


class _Warp:
    """Where a thread stands: its warp's keys and query heads, and its row and column of a product's registers."""

    def __init__(self, shape: AttentionShape, config: TensorDecodeConfig, thread: Any) -> None:
        self.vectors = shape.head_dim // vector_length(shape)
        self.key_blocks, self.value_blocks = -(-self.vectors // _QUAD), -(-self.vectors // EIGHT)
        lane, warp = thread % WARP, thread // WARP
        self.row, self.column = held("row", lane // _QUAD), held("column", lane % _QUAD)
        self.key_warp = held("key_warp", warp // config.head_warps)
        self._first_head: Any = i32(0)
        if config.head_warps > 1:
            self._first_head = held("first_head", warp % config.head_warps * (EIGHT * config.eights))

    def vector(self, across: int, block: int) -> Any:
        """Which vector of a head's a lane reads where ``across`` lanes read as many; those beyond read the last."""
        own = across * block + (self.column if across == _QUAD else self.row)
        return own if across * (block + 1) <= self.vectors else tirx.min(own, i32(self.vectors - 1))

    def head(self, row: Any, eight: int) -> Any:
        """The query head of the group that a row of an eight is."""
        return self._first_head + (EIGHT * eight + row)


class _Softmax:
    """m of a lane's heads, its own part of l, and O^T: [blocks of 64 features, 4, eights] of 4 registers."""

    def __init__(self, shape: AttentionShape, eights: int) -> None:
        self._shape, self._eights = shape, eights
        self._maximum, self._total = registers("maximum", eights), registers("total", eights)
        vectors = shape.head_dim // vector_length(shape)
        count = -(-vectors // EIGHT) * 4 * eights * 4
        self._sums = registers("sums", count)
        for eight in range(eights):
            T.buffer_store(self._maximum, f32(NOTHING), [eight])
            T.buffer_store(self._total, f32(0), [eight])
        for i in range(count):
            T.buffer_store(self._sums, f32(0), [i])

    def score(self, warp: _Warp, queries: Any, keys: Any) -> Any:
        """Emit S of two eights of keys, four registers each."""
        scores = registers("scores", 8)
        nothing = tirx.const(0, "uint32")
        for i in range(8):
            T.buffer_store(scores, f32(0), [i])
        for block in range(warp.key_blocks):
            for pair in range(2):
                left = []
                for word in (2 * pair, 2 * pair + 1):
                    low, high = (4 * (eight * warp.key_blocks + block) + word for eight in (0, 1))
                    left += [queries[low], queries[high] if self._eights == 2 else nothing]
                for eight in range(2):
                    at = 4 * (eight * warp.key_blocks + block) + 2 * pair
                    own = [scores[4 * eight + i] for i in range(4)]
                    ptx.mma(own, left, [keys[at], keys[at + 1]], self._shape.dtype)
        return scores

    def soften(self, warp: _Warp, scores: Any, scale: Any, base: Any, first: Any, end: Any) -> Any:
        """Emit what turns S into P and brings m, l and O up to date; returns P^T, two words an eight of heads."""
        words = registers("weights", 2 * self._eights, "uint32")
        pairs = registers("pairs", 4 * self._eights, self._shape.dtype)
        shrinks = registers("shrinks", self._eights)
        for eight in range(self._eights):
            own = [4 * keys + 2 * eight + i for keys in range(2) for i in range(2)]
            highest = registers("highest", 1)
            T.buffer_store(highest, self._maximum[eight], [0])
            for number, at in enumerate(own):
                key = base + 2 * warp.column + (EIGHT * (number // 2) + number % 2)
                seen = key < end if first is None else T.And(key < end, key >= first)
                T.buffer_store(scores, T.Select(seen, scores[at] * scale, f32(MASKED)), [at])
                T.buffer_store(highest, T.max(highest[0], scores[at]), [0])
            combine_lanes(highest, 0, T.max, shfl_xor, (1, 2))
            T.buffer_store(shrinks, tirx.exp2(self._maximum[eight] - highest[0]), [eight])
            T.buffer_store(self._maximum, highest[0], [eight])
            T.buffer_store(self._total, self._total[eight] * shrinks[eight], [eight])
            for number, at in enumerate(own):
                T.buffer_store(scores, tirx.exp2(scores[at] - highest[0]), [at])
                T.buffer_store(self._total, self._total[eight] + scores[at], [eight])
                T.buffer_store(pairs, scores[at].astype(self._shape.dtype), [4 * eight + number])
            for keys in range(2):
                pair = pairs[T.Ramp(4 * eight + 2 * keys, 1, 2)]
                T.buffer_store(words, T.reinterpret("uint32", pair), [2 * eight + keys])
        for eight in range(self._eights):
            for i in range(2):
                # What a row's lanes know, the lanes of that column of O^T want.
                shrink = held("shrink", shfl(shrinks[eight], (2 * warp.column + i) * _QUAD), "float32")
                for tile in range(4 * warp.value_blocks):
                    for at in (self._at(tile, eight, i), self._at(tile, eight, i + 2)):
                        T.buffer_store(self._sums, self._sums[at] * shrink, [at])
        return words

    def gather(self, warp: _Warp, values: Any, weights: Any) -> None:
        """Emit O^T += V^T P^T."""
        rows = warp.value_blocks * 4
        for block in range(warp.value_blocks):
            for word in range(4):
                left = registers("left", 4, "uint32")
                for keys in range(2):
                    two = [values[(2 * keys + one) * rows + 4 * block + word] for one in range(2)]
                    for half, selector in enumerate((_LOW, _HIGH)):
                        ptx.permute_bytes(left[2 * keys + half], two[0], two[1], selector)
                for eight in range(self._eights):
                    own = [self._sums[self._at(4 * block + word, eight, i)] for i in range(4)]
                    right = [weights[2 * eight], weights[2 * eight + 1]]
                    ptx.mma(own, [left[i] for i in range(4)], right, self._shape.dtype)

    def leave(self, warp: _Warp, meeting: Meeting) -> None:
        """Emit the stores of what the warp has found."""
        for eight in range(self._eights):
            combine_lanes(self._total, eight, operator.add, shfl_xor, (1, 2))
            own = warp.head(warp.row, eight)
            with T.If(T.And(warp.column == 0, own < self._shape.group)), T.Then():
                meeting.leave_state(warp.key_warp, own, self._maximum[eight], self._total[eight])
            for i in range(2):
                head = warp.head(2 * warp.column + i, eight)
                with T.If(head < self._shape.group), T.Then():
                    for block in range(warp.value_blocks):
                        vector = EIGHT * block + warp.row
                        with T.If(vector < warp.vectors), T.Then():
                            for number in range(EIGHT):
                                at = self._at(4 * block + number // 2, eight, number % 2 * 2 + i)
                                value = self._sums[at]
                                meeting.leave_sum(warp.key_warp, head, vector * EIGHT + number, value)

    def _at(self, tile: int, eight: int, i: int) -> int:
        return 4 * (tile * self._eights + eight) + i
