"""Attention of one new token a sequence to its pages, on CUDA and Metal; the roof is the bandwidth of the pages.

A block takes a sequence and one key-value head, so that keys and values are read once for all query heads of the
group. Lanes that are neighbours read one key, 16 bytes each, and add up its scores by exchanging with each other; a
warp reads as many keys at once as it has such groups of lanes, and a few of each group before it reckons with any.
Each group of lanes has a softmax of its own over the keys that it saw, in float32: m, l and O of ``attention.tile``.
They meet at the end: those of a warp by exchanging, those of a block's warps in shared memory, and those of the
blocks that share a long context in a second kernel, as in flash decoding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.target import Target
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import DecodeConfig, vector_length
from awq_tvm.schedules.attention.gpu.lanes import (
    WARP,
    Exchange,
    as_words,
    combine_lanes,
    exchange_of,
    halves_of,
    held,
    load_vector,
    registers,
    unpack,
)
from awq_tvm.schedules.attention.gpu.meeting import Meeting
from awq_tvm.schedules.attention.gpu.problem import PageWalk, Problem, decode_function
from awq_tvm.schedules.attention.gpu.splits import Splits, Whole
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import MASKED, NOTHING, f32, i32


def decode_paged(shape: AttentionShape, target: Target, config: DecodeConfig) -> tirx.PrimFunc:
    """See ``Problem``; float16 or float32.

    Args:
        shape: of the attention.
        target: a GPU.
        config: sizes.
    """
    exchange = exchange_of(target)
    return decode_function(
        shape, config.blocks, lambda problem, splits: _Kernel(problem, config, exchange).launch(splits)
    )


@dataclass(frozen=True)
class _Kernel:
    """The kernel that reads pages."""

    problem: Problem
    config: DecodeConfig
    exchange: Exchange

    def launch(self, splits: Splits | Whole) -> None:
        """Emit it."""
        problem, shape, config = self.problem, self.problem.shape, self.config
        with (
            T.launch_thread("blockIdx.x", problem.batch) as sequence,
            T.launch_thread("blockIdx.y", shape.kv_heads) as kv_head,
            T.launch_thread("blockIdx.z", splits.count) as split,
            T.launch_thread("threadIdx.x", config.threads) as thread,
        ):
            warp = thread // WARP
            lane = _Lane(shape, config, thread % WARP, warp // config.head_warps, warp % config.head_warps)
            start, end = splits.run(split, *problem.span(sequence))
            with T.If(T.Or(start < end, split == 0)), T.Then():
                first = problem.first_seen(sequence)
                found = _Softmax(config, lane, vector_length(shape))
                queries = self._queries(sequence, kv_head, lane)
                self._read(found, queries, lane, sequence, kv_head, first, start, end)
                found.meet_in_warp(self.exchange)
                meeting = Meeting(shape, config.key_warps)
                self._leave(found, lane, meeting)
                meeting.finish(thread, config.threads, (sequence, kv_head, split), splits)

    def _queries(self, sequence: Any, kv_head: Any, lane: _Lane) -> Any:
        """Emit the loads of a lane's features of its query heads; scaled, in float32."""
        shape, config, length = self.problem.shape, self.config, vector_length(self.problem.shape)
        vectors = shape.head_dim // length
        q = self.problem.q
        flat = as_words(q, q.shape[0] * (shape.heads * vectors))
        queries = registers("queries", config.heads * config.pieces * length)
        scale = self.problem.scale()
        words = registers("words", 4, "uint32")
        for h in range(config.heads):
            own = lane.first_head + h
            if config.heads * config.head_warps > shape.group:
                own = tirx.min(own, i32(shape.group - 1))
            head = kv_head * shape.group + own
            for piece in range(config.pieces):
                vector = (sequence * shape.heads + head) * vectors + lane.vector(piece)
                load_vector(words, 0, flat, vector)
                for i, value in enumerate(unpack(words, 0, shape.dtype)):
                    # Lanes beyond the features have none of the scores.
                    query = T.Select(lane.has(piece), value * scale, f32(0))
                    T.buffer_store(queries, query, [(h * config.pieces + piece) * length + i])
        return queries

    def _read(
        self,
        found: _Softmax,
        queries: Any,
        lane: _Lane,
        sequence: Any,
        kv_head: Any,
        first: Any,
        start: Any,
        end: Any,
    ) -> None:
        """Emit the loop over the keys of a warp, chunk by chunk."""
        problem, shape, config = self.problem, self.problem.shape, self.config
        vectors = shape.head_dim // vector_length(shape)
        half = shape.kv_heads * PAGE_SIZE * vectors
        flat = as_words(problem.history.pages.buffer, problem.history.pages.count * (2 * half))
        turn = config.chunk * config.key_warps
        walk = PageWalk(problem, sequence, start, end, turn, lane.key_warp * config.chunk)

        def visit(base: Any, ask: Callable[[], None]) -> None:
            numbers = [base + lane.slot + u * config.slots for u in range(config.unroll)]
            places = []
            for number in numbers:
                # Keys beyond the last are read as the last, and count for nothing.
                key = held("key", tirx.min(number, end - 1))
                page = walk.page[0] if config.chunk <= PAGE_SIZE else walk.page_of(key)
                row = kv_head * PAGE_SIZE + tirx.bitwise_and(key, i32(PAGE_SIZE - 1))
                places.append(held("vector_at", page * i32(2 * half) + row * vectors))
            keys = self._load(flat, places, lane)
            values = self._load(flat, [place + half for place in places], lane)
            ask()
            seen = [number < end for number in numbers]
            if first is not None:
                seen = [T.And(one, number >= first) for one, number in zip(seen, numbers, strict=True)]
            found.see(queries, keys, values, seen, self.exchange, shape.dtype)

        walk.each(visit)

    def _load(self, flat: Any, places: list[Any], lane: _Lane) -> Any:
        """Emit the loads of a lane's vectors of some keys, or values."""
        pieces = self.config.pieces
        words = registers("words", 4 * pieces * len(places), "uint32")
        for u, place in enumerate(places):
            for piece in range(pieces):
                load_vector(words, 4 * (u * pieces + piece), flat, place + lane.vector(piece))
        return words

    def _leave(self, found: _Softmax, lane: _Lane, meeting: Meeting) -> None:
        """Emit the stores of what the warp has found."""
        config, length = self.config, vector_length(self.problem.shape)
        for h in range(config.heads):
            head = lane.first_head + h
            with T.If(T.And(lane.slot == 0, head < self.problem.shape.group)), T.Then():
                for piece in range(config.pieces):
                    with T.If(lane.has(piece)), T.Then():
                        for i in range(length):
                            feature = lane.vector(piece) * length + i
                            value = found.sums[found.at(h, piece, i)]
                            meeting.leave_sum(lane.key_warp, head, feature, value)
                with T.If(lane.place == 0), T.Then():
                    meeting.leave_state(lane.key_warp, head, found.maximum[h], found.total[h])


class _Lane:
    """Where a thread stands: which features of which keys and query heads are its own."""

    def __init__(
        self, shape: AttentionShape, config: DecodeConfig, lane: Any, key_warp: Any, head_warp: Any
    ) -> None:
        self._vectors, self._lanes = shape.head_dim // vector_length(shape), config.lanes
        self._whole = config.lanes * config.pieces == self._vectors
        self.place, self.slot = held("place", lane % config.lanes), held("slot", lane // config.lanes)
        self.key_warp = held("key_warp", key_warp)
        self.first_head = held("first_head", head_warp * config.heads) if config.head_warps > 1 else i32(0)

    def has(self, piece: int) -> Any:
        """Whether a vector of the lane is one of the head's."""
        if self._whole:
            return tirx.const(True, "bool")
        return self.place + piece * self._lanes < self._vectors

    def vector(self, piece: int) -> Any:
        """Which vector of a head's a lane reads; lanes beyond them read the last."""
        own = self.place + piece * self._lanes
        return own if self._whole else tirx.min(own, i32(self._vectors - 1))


class _Softmax:
    """m, l and O of the keys that a lane's group has seen, O of the lane's features; for some query heads."""

    def __init__(self, config: DecodeConfig, lane: _Lane, length: int) -> None:
        self._config, self._length = config, length
        self.maximum, self.total = registers("maximum", config.heads), registers("total", config.heads)
        self.sums = registers("sums", config.heads * config.pieces * length)
        for h in range(config.heads):
            T.buffer_store(self.maximum, f32(NOTHING), [h])
            T.buffer_store(self.total, f32(0), [h])
        for i in range(config.heads * config.pieces * length):
            T.buffer_store(self.sums, f32(0), [i])

    def at(self, head: int, piece: int, i: int) -> int:
        """Where O of a head and feature is, and q."""
        return (head * self._config.pieces + piece) * self._length + i

    def see(
        self, queries: Any, keys: Any, values: Any, seen: list[Any], exchange: Exchange, dtype: str
    ) -> None:
        """Emit what ``unroll`` keys of the group of lanes change.

        Args:
            queries: of the lane's heads and features.
            keys: words of the lane's features.
            values: the same.
            seen: whether a key counts.
            exchange: how lanes add up.
            dtype: of keys and values.
        """
        config = self._config
        scores = registers("scores", config.heads * config.unroll)
        for u in range(config.unroll):
            for piece in range(config.pieces):
                key = unpack(keys, 4 * (u * config.pieces + piece), dtype)
                for h in range(config.heads):
                    at = h * config.unroll + u
                    for i, feature in enumerate(key):
                        product = queries[self.at(h, piece, i)] * feature
                        old = scores[at] + product if piece or i else product
                        T.buffer_store(scores, old, [at])
        for h in range(config.heads):
            own = range(h * config.unroll, (h + 1) * config.unroll)
            highest = registers("highest", 1)
            T.buffer_store(highest, self.maximum[h], [0])
            for u, at in enumerate(own):
                combine_lanes(scores, at, operator.add, exchange, halves_of(config.lanes))
                T.buffer_store(scores, T.Select(seen[u], scores[at], f32(MASKED)), [at])
                T.buffer_store(highest, T.max(highest[0], scores[at]), [0])
            shrink = held("shrink", tirx.exp2(self.maximum[h] - highest[0]), "float32")
            T.buffer_store(self.maximum, highest[0], [h])
            T.buffer_store(self.total, self.total[h] * shrink, [h])
            for at in own:
                T.buffer_store(scores, tirx.exp2(scores[at] - highest[0]), [at])
                T.buffer_store(self.total, self.total[h] + scores[at], [h])
            for i in range(config.pieces * self._length):
                T.buffer_store(self.sums, self.sums[self.at(h, 0, i)] * shrink, [self.at(h, 0, i)])
        for u in range(config.unroll):
            for piece in range(config.pieces):
                value = unpack(values, 4 * (u * config.pieces + piece), dtype)
                for h in range(config.heads):
                    weight = scores[h * config.unroll + u]
                    for i, feature in enumerate(value):
                        at = self.at(h, piece, i)
                        T.buffer_store(self.sums, self.sums[at] + weight * feature, [at])

    def meet_in_warp(self, exchange: Exchange) -> None:
        """Emit the meeting of the warp's groups of lanes: then each has what all saw."""
        config = self._config
        distance = config.lanes
        while distance < WARP:
            for h in range(config.heads):
                other = held("other", exchange(self.maximum[h], distance), "float32")
                both = held("both", T.max(self.maximum[h], other), "float32")
                own_weight = held("own_weight", tirx.exp2(self.maximum[h] - both), "float32")
                other_weight = held("other_weight", tirx.exp2(other - both), "float32")
                T.buffer_store(self.maximum, both, [h])
                places = [(self.total, h)]
                places += [(self.sums, self.at(h, 0, i)) for i in range(config.pieces * self._length)]
                for buffer, at in places:
                    more = exchange(buffer[at], distance) * other_weight
                    T.buffer_store(buffer, buffer[at] * own_weight + more, [at])
            distance *= 2
