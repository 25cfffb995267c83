"""What sampling needs of a row of logits, on CUDA and Metal: the C likeliest with their ids, and two sums.

The op: of x[V] the C largest, largest first and of equal ones the lowest id first, where what is not a number counts
as the largest; sum(exp(x - max)) and sum(exp((x - max) / temperature)). The row is divided among up to ``MOST_PARTS``
blocks that read it once, 16 bytes a thread, and leave what they found; one more block a row merges that. So two
launches and 528 bytes to the host, in place of 4 V bytes and a pass over them there. The roof is the time of a
dozen or two rounds in which a block counts, see ``gpu.selection``.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.target import Target
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import (
    WARP,
    as_words,
    combine_lanes,
    exchange_of,
    halves_of,
    held,
    load_vector,
    registers,
)
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.schedules.attention.tile import MASKED, f32, i32
from awq_tvm.schedules.gpu.selection import (
    NO_ID,
    OF_MINUS_INFINITY,
    THREADS,
    Block,
    counter_of,
    key_of,
    number_of,
    select,
    u32,
)

CANDIDATES = 64
"""C."""
RECORD = 2 * CANDIDATES + 4
"""Numbers of 32 bits of a row, or of a block's part of it: values, ids, the sums, and the part's largest."""
AT_SUM, AT_TEMPERED, AT_MAXIMUM = 2 * CANDIDATES, 2 * CANDIDATES + 1, 2 * CANDIDATES + 2
MOST_PARTS = 2 * WARP
_LEAST_TURNS = 2
"""Vectors of four that a thread has at least: shorter parts are more for the merging block."""


@dataclass(frozen=True)
class Division:
    """How a row is divided among blocks.

    Args:
        vocabulary: V.
    """

    vocabulary: int

    @property
    def turns(self) -> int:
        """Vectors of four of each thread."""
        return max(_LEAST_TURNS, -(-self.vocabulary // (4 * THREADS * MOST_PARTS)))

    @property
    def part(self) -> int:
        """Logits of a block."""
        return 4 * THREADS * self.turns

    @property
    def parts(self) -> int:
        """Blocks of a row."""
        return -(-self.vocabulary // self.part)


def find_candidates(vocabulary: int, target: Target) -> tirx.PrimFunc:
    """The scheduled PrimFunc.

    Parameters: logits float32 [m, V], inverse_temperatures float32 [m], parts uint32 [m, parts, RECORD], of which
    it leaves nothing to read, and found float32 [m, RECORD]: values, ids (the bits of int32), the two sums, and two
    numbers without meaning. Where V is less than C, as many values and ids as there are.

    Args:
        vocabulary: V.
        target: a GPU.
    """
    division = Division(vocabulary)
    exchange, count = exchange_of(target), counter_of(target)

    def emit() -> None:
        rows = size("m", "int64")
        logits = tensor("logits", (rows, vocabulary))
        temperatures = tensor("inverse_temperatures", (rows,))
        parts = tensor("parts", (rows, division.parts, RECORD), "uint32")
        found = tensor("found", (rows, RECORD))
        with (
            T.launch_thread("blockIdx.x", division.parts) as part,
            T.launch_thread("blockIdx.y", rows) as row,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            _read_part(division, Block(thread, exchange, count), (logits, temperatures, parts), row, part)
        with (
            T.launch_thread("blockIdx.x", rows) as row,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            _merge(division, Block(thread, exchange, count), (temperatures, parts, found), row)

    return build("candidates", emit, overlaps=True)


def _read_part(division: Division, block: Block, buffers: tuple[Any, Any, Any], row: Any, part: Any) -> None:
    """Emit the work of a block that reads logits."""
    logits, temperatures, parts = buffers
    keys, ids = _load_logits(division, logits, block.thread, row, part)
    own_largest = registers("own_largest", 1, "uint32")
    T.buffer_store(own_largest, keys[0], [0])
    for i in range(1, len(ids)):
        T.buffer_store(own_largest, T.max(own_largest[0], keys[i]), [0])
    largest = held("largest", block.reduce(own_largest[0], T.max, "uint32"), "uint32")
    maximum = held("maximum", number_of(largest), "float32")
    inverse = held("inverse", temperatures[row], "float32")
    sums = [_sum(block, keys, len(ids), maximum, scale) for scale in (f32(1), inverse)]
    among, chosen = select(block, keys, ids, CANDIDATES, (division.part - 1).bit_length())
    place, total = block.count_before(held("chosen", chosen))
    for i, number in enumerate(ids):
        with T.If(among(i)), T.Then():
            T.buffer_store(parts, keys[i], [row, part, place[0]])
            name = (part * division.part + number).astype("uint32")
            T.buffer_store(parts, name, [row, part, place[0] + CANDIDATES])
        T.buffer_store(place, place[0] + T.Select(among(i), i32(1), i32(0)), [0])
    with T.If(T.And(block.thread >= total, block.thread < CANDIDATES)), T.Then():
        T.buffer_store(parts, u32(0), [row, part, block.thread])
        T.buffer_store(parts, u32(NO_ID), [row, part, block.thread + CANDIDATES])
    # Nothing but -inf, or nothing at all: exp(-inf + inf) is no number.
    empty = largest <= u32(OF_MINUS_INFINITY)
    with T.If(block.thread == 0), T.Then():
        for at, value in zip((AT_SUM, AT_TEMPERED), sums, strict=True):
            T.buffer_store(parts, T.reinterpret("uint32", T.Select(empty, f32(0), value)), [row, part, at])
        T.buffer_store(
            parts, T.reinterpret("uint32", T.Select(empty, f32(0), maximum)), [row, part, AT_MAXIMUM]
        )


def _load_logits(division: Division, logits: Any, thread: Any, row: Any, part: Any) -> tuple[Any, list[Any]]:
    """Emit the loads of a thread's logits of a part; their keys, and their numbers in it."""
    vocabulary, rows = division.vocabulary, logits.shape[0]
    width = math.gcd(vocabulary, 4)
    words, keys = (
        registers("words", 4 * division.turns, "uint32"),
        registers("keys", 4 * division.turns, "uint32"),
    )
    flat = as_words(logits, tirx.floordiv(rows * vocabulary + 3, tirx.const(4, "int64")))
    ids = [held("number", (turn * THREADS + thread) * 4) for turn in range(division.turns)]
    for turn, first in enumerate(ids):
        for i in range(0, 4, width):
            at = held("at", part * division.part + first + i)
            for j in range(width):
                T.buffer_store(keys, u32(0), [4 * turn + i + j])
            with T.If(at < vocabulary), T.Then():
                place = tirx.floordiv(row * vocabulary + at, tirx.const(width, "int64"))
                if width == 1:
                    T.buffer_store(words, flat[place], [4 * turn + i])
                else:
                    load_vector(words, 4 * turn + i, flat, place, width)
                for j in range(i, i + width):
                    T.buffer_store(keys, key_of(words[4 * turn + j]), [4 * turn + j])
    return keys, [first + i for first in ids for i in range(4)]


def _sum(block: Block, keys: Any, count: int, maximum: Any, scale: Any) -> Any:
    """Emit the sum of exp((x - maximum) scale) over the block's numbers."""
    own = registers("own_sum", 1)
    T.buffer_store(own, f32(0), [0])
    for i in range(count):
        power = tirx.exp((number_of(keys[i]) - maximum) * scale)
        T.buffer_store(own, own[0] + T.Select(keys[i] > u32(0), power, f32(0)), [0])
    return held("sum", block.reduce(own[0], operator.add, "float32"), "float32")


def _merge(division: Division, block: Block, buffers: tuple[Any, Any, Any], row: Any) -> None:
    """Emit the work of the block that merges the parts of a row."""
    temperatures, parts, found = buffers
    turns = -(-division.parts * CANDIDATES // (4 * THREADS))
    keys, ids = registers("keys", 4 * turns, "uint32"), registers("ids", 4 * turns, "uint32")
    flat = as_words(parts, parts.shape[0] * (division.parts * RECORD // 4))
    for turn in range(turns):
        vector = held("vector", turn * THREADS + block.thread)
        for i in range(4):
            T.buffer_store(keys, u32(0), [4 * turn + i])
            T.buffer_store(ids, u32(NO_ID), [4 * turn + i])
        with T.If(vector < division.parts * CANDIDATES // 4), T.Then():
            part, own = vector // (CANDIDATES // 4), vector % (CANDIDATES // 4)
            at = held("at", (row * division.parts + part) * (RECORD // 4) + own, "int64")
            load_vector(keys, 4 * turn, flat, at)
            load_vector(ids, 4 * turn, flat, at + CANDIDATES // 4)
    names = [ids[i].astype("int32") for i in range(4 * turns)]
    among, chosen = select(block, keys, names, CANDIDATES, division.vocabulary.bit_length())
    best = block.shared("best", CANDIDATES, "uint32")
    owners = block.shared("owners", CANDIDATES, "int32")
    with T.If(block.thread < CANDIDATES), T.Then():
        T.buffer_store(best, u32(0), [block.thread])
        # Each another, all behind those that are there.
        T.buffer_store(owners, i32(NO_ID - CANDIDATES) + block.thread, [block.thread])
    place, _ = block.count_before(held("chosen", chosen))
    for i in range(4 * turns):
        with T.If(among(i)), T.Then():
            T.buffer_store(best, keys[i], [place[0]])
            T.buffer_store(owners, names[i], [place[0]])
        T.buffer_store(place, place[0] + T.Select(among(i), i32(1), i32(0)), [0])
    block.barrier()
    _store_in_order(block, best, owners, found, row)
    _store_sums(division, block, temperatures[row], parts, found, row)


def _store_in_order(block: Block, best: Any, owners: Any, found: Any, row: Any) -> None:
    """Emit the stores of what was found: each to as many places from the first as come before it."""
    with T.If(block.thread < CANDIDATES), T.Then():
        key, owner = held("key", best[block.thread], "uint32"), held("owner", owners[block.thread])
        rank = registers("rank", 1, "int32")
        T.buffer_store(rank, i32(0), [0])
        with T.serial(CANDIDATES) as other:
            first = T.Or(key < best[other], T.And(best[other] == key, owners[other] < owner))
            T.buffer_store(rank, rank[0] + T.Select(first, i32(1), i32(0)), [0])
        T.buffer_store(found, number_of(key), [row, rank[0]])
        T.buffer_store(found, T.reinterpret("float32", owner), [row, rank[0] + CANDIDATES])


def _store_sums(division: Division, block: Block, inverse: Any, parts: Any, found: Any, row: Any) -> None:
    """Emit the sums over the parts; every warp works them out."""
    factor = held("inverse", inverse, "float32")
    maxima, sums = registers("maxima", 2), registers("sums", 4)
    for i in range(MOST_PARTS // WARP):
        part = held("part", block.lane + i * WARP)
        T.buffer_store(maxima, f32(MASKED), [i])
        for j, at in enumerate((AT_SUM, AT_TEMPERED)):
            T.buffer_store(sums, f32(0), [2 * i + j])
            with T.If(part < division.parts), T.Then():
                T.buffer_store(sums, T.reinterpret("float32", parts[row, part, at]), [2 * i + j])
        # A part without a number has sums of nothing, whose maximum says nothing.
        with T.If(sums[2 * i] > f32(0)), T.Then():
            T.buffer_store(maxima, T.reinterpret("float32", parts[row, part, AT_MAXIMUM]), [i])
    highest = registers("highest", 1)
    T.buffer_store(highest, T.max(maxima[0], maxima[1]), [0])
    combine_lanes(highest, 0, T.max, block.exchange, halves_of(WARP))
    totals = registers("totals", 2)
    for j, scale in enumerate((f32(1), factor)):
        weighed = [sums[2 * i + j] * tirx.exp((maxima[i] - highest[0]) * scale) for i in range(2)]
        T.buffer_store(totals, weighed[0] + weighed[1], [j])
        combine_lanes(totals, j, operator.add, block.exchange, halves_of(WARP))
    with T.If(block.thread == 0), T.Then():
        T.buffer_store(found, totals[0], [row, AT_SUM])
        T.buffer_store(found, totals[1], [row, AT_TEMPERED])
