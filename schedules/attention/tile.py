"""One tile of attention: a block of queries against a run of keys, with the softmax kept online.

For query rows r, keys j and features d, with scores already in units of log2:

    S[r, j] = sum_d Q[r, d] * K[d, j]                       (keys transposed: 16 keys are one vector)
    m'[r] = max(m[r], max_j S[r, j]);  a[r] = 2**(m[r] - m'[r])
    P[r, j] = 2**(S[r, j] - m'[r]);    l[r] = a[r] * l[r] + sum_j P[r, j]
    O[r, d] = a[r] * O[r, d] + sum_j P[r, j] * V[j, d]

Both products are the same register block: rows x vectors accumulators, one scalar of the left side spread
over a vector of the right side. The idea is that of flash attention (arXiv:2205.14135); the roof is the machine's
multiply-add rate for many queries and memory bandwidth for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules import vector_math
from awq_tvm.schedules.attention.shape import LANES, AttentionShape, Tiles

NOTHING = -1e30
"""The running maximum of a row that has seen no key yet, and the log-sum of one that never does."""

MASKED = -3e38
"""The score of a key that a row does not see: far below NOTHING, so that its weight is 0 whatever else is seen."""


def i32(value: int) -> Any:
    """An int32 constant."""
    return tirx.const(value, "int32")


def f32(value: float) -> Any:
    """A float32 constant."""
    return tirx.const(value, "float32")


def vector_at(offset: Any, width: int = LANES) -> Any:
    """The index of ``width`` consecutive elements from ``offset`` on."""
    return T.ramp(offset, 1, width)


def load(buffer: Any, indices: Sequence[Any], width: int = LANES) -> Any:
    """``width`` consecutive elements along the last axis, as float32."""
    value = buffer[(*indices[:-1], vector_at(indices[-1], width))]
    return value if str(buffer.dtype) == "float32" else value.astype(f"float32x{width}")


def store(buffer: Any, value: Any, indices: Sequence[Any], width: int = LANES) -> None:
    """Write ``width`` consecutive elements along the last axis, from float32."""
    if str(buffer.dtype) != "float32":
        value = value.astype(f"{buffer.dtype}x{width}")
    T.buffer_store(buffer, value, [*indices[:-1], vector_at(indices[-1], width)])


def columns(head_dim: int, vectors: int) -> list[tuple[int, list[int]]]:
    """Cut the features into register blocks: (first feature, widths of its vectors)."""
    widths = [LANES] * (head_dim // LANES) + ([8] if head_dim % LANES else [])
    blocks = []
    start = 0
    for first in range(0, len(widths), vectors):
        block = widths[first : first + vectors]
        blocks.append((start, block))
        start += sum(block)
    return blocks


def keep(value: Any) -> Any:
    """Compute a value here, once.

    ``T.bind`` does not: TVM puts the expression back in wherever the name is used, which repeats long ones
    over and over and takes it many seconds to simplify. A small array is left alone, and LLVM keeps it in a
    register. It must be of scope "global" and below 1024 bytes to be on the stack.
    """
    width = vector_math.lanes(value)
    place = T.alloc_buffer((width,), str(value.ty.dtype).partition("x")[0], scope="global")
    index = vector_at(i32(0), width) if width > 1 else i32(0)
    T.buffer_store(place, value, [index])
    return place[index]


@contextmanager
def only_if(condition: Any) -> Iterator[None]:
    """Run the enclosed statements where the condition holds."""
    with T.If(condition), T.Then():
        yield


class Registers:
    """A block of accumulators, one small array a row, which LLVM keeps in registers."""

    def __init__(self, rows: int, widths: list[int]) -> None:
        self.rows, self.widths = rows, widths
        self.starts = [sum(widths[:i]) for i in range(len(widths))]
        self.buffers = [T.alloc_buffer((sum(widths),), "float32", scope="global") for _ in range(rows)]

    def set(self, row: int, vector: int, value: Any) -> None:
        """Overwrite one vector."""
        store(self.buffers[row], value, [i32(self.starts[vector])], self.widths[vector])

    def get(self, row: int, vector: int) -> Any:
        """Read one vector."""
        return load(self.buffers[row], [i32(self.starts[vector])], self.widths[vector])

    def multiply_add(self, left: Callable[[int], Any], right: Callable[[int], Any]) -> None:
        """Add left(row) * right(vector) to every accumulator."""
        rights = [T.bind(right(vector)) for vector in range(len(self.widths))]
        for row in range(self.rows):
            scalar = T.bind(left(row))
            for vector, width in enumerate(self.widths):
                product = T.Broadcast(scalar, width) * rights[vector]
                self.set(row, vector, self.get(row, vector) + product)


@dataclass(frozen=True)
class Prefetcher:
    """Asks for keys and values before they are read, a few at a time.

    Attributes:
        keys: (first key of a page, first number in it, how many) -> emits what asks for that part of its keys.
        values: the same for its values.
    """

    keys: Callable[[Any, Any, int], None]
    values: Callable[[Any, Any, int], None]


@dataclass(frozen=True)
class Scales:
    """What int8 keys and values are multiples of: no product of the inner loops has more than one of them.

    S[r, j] is the sum over d times the scale of key j; P[r, j] is multiplied with that of value j before P V.

    Attributes:
        keys: first key of a vector -> [LANES] scales of its keys; undefined beyond the last key.
        values: the same for its values.
    """

    keys: Callable[[Any], Any]
    values: Callable[[Any], Any]


class Tile:
    """The state of one block of queries while keys pass by, and the statements that update it.

    Made inside a PrimFunc under construction: the constructor allocates, the methods emit.
    """

    def __init__(self, shape: AttentionShape, tiles: Tiles) -> None:
        self.shape, self.tiles = shape, tiles
        rows = tiles.tile_rows
        self.query = T.alloc_buffer((rows, shape.head_dim), "float32", scope="global")
        self.scores = T.alloc_buffer((rows, tiles.tile_keys), "float32", scope="global")
        self.output = T.alloc_buffer((rows, shape.head_dim), "float32", scope="global")
        self.sums = T.alloc_buffer((rows, LANES), "float32", scope="global")
        self.shrink = T.alloc_buffer((rows,), "float32", scope="global")
        self.maximum = T.alloc_buffer((rows,), "float32", scope="global")

    def start(self, rows: Any, read_query: Callable[[Any, int, int], Any]) -> None:
        """Load the queries (already scaled) and forget all keys.

        Args:
            rows: number of rows in use; the rest of the last register block is filled with zeros.
            read_query: (row, feature, width) -> vector.
        """
        with T.serial(self.row_blocks(rows) * self.tiles.rows) as r:
            for start, widths in columns(self.shape.head_dim, 1):
                with T.If(r < rows):
                    with T.Then():
                        store(self.query, read_query(r, start, widths[0]), [r, i32(start)], widths[0])
                    with T.Else():
                        store(self.query, vector_math.splat(0.0, widths[0]), [r, i32(start)], widths[0])
                store(self.output, vector_math.splat(0.0, widths[0]), [r, i32(start)], widths[0])
            store(self.sums, vector_math.splat(0.0, LANES), [r, i32(0)])
            T.buffer_store(self.maximum, f32(NOTHING), [r])

    def row_blocks(self, rows: Any) -> Any:
        """Register blocks that cover this many rows."""
        return tirx.floordiv(rows + i32(self.tiles.rows - 1), i32(self.tiles.rows))

    def see(
        self,
        rows: Any,
        first_key: Any,
        last_key: Any,
        key_vector: Callable[[Any], Callable[[Any], Any]],
        value_vector: Callable[[Any], Callable[[Any, int, int], Any]],
        visible: Callable[[Any], tuple[Any | None, Any]],
        ahead: Prefetcher | None = None,
        scales: Scales | None = None,
    ) -> None:
        """Let the keys first_key <= j < last_key pass by.

        Args:
            rows: number of rows in use.
            first_key: a multiple of LANES.
            last_key: keys from here on are not read as values; those in its vector score and count for nothing.
            key_vector: first key of a vector -> (feature -> [LANES] scores' right side).
            value_vector: first key of a vector -> ((key in it, feature, width) -> vector).
            visible: row -> (first visible key or None, end of the visible keys).
            ahead: asks for values while scores are computed, and for the next tile's keys while values are summed:
                pages lie scattered, so the processor does not see what comes next.
            scales: what keys and values are multiplied with, None for nothing.
        """
        tile_keys = i32(self.tiles.tile_keys)
        with T.serial(tirx.floordiv(last_key - first_key + tile_keys - 1, tile_keys)) as tile:
            start = keep(first_key + tile * tile_keys)
            count = keep(tirx.min(last_key - start, tile_keys))
            block_keys = i32(self.tiles.block_keys)
            key_blocks = keep(tirx.floordiv(count + block_keys - 1, block_keys))
            self._score(rows, start, key_blocks, key_vector, ahead, scales)
            self._soften(rows, start, key_blocks, visible, scales)
            self._gather(rows, start, count, value_vector, ahead)

    def _score(
        self,
        rows: Any,
        start: Any,
        key_blocks: Any,
        key_vector: Callable[..., Any],
        ahead: Prefetcher | None,
        scales: Scales | None,
    ) -> None:
        """S = Q K."""
        tiles, head_dim = self.tiles, self.shape.head_dim
        with T.serial(key_blocks) as block:
            first = block * tiles.block_keys
            keys = [key_vector(start + first + v * LANES) for v in range(tiles.vectors)]
            factors = [scales and keep(scales.keys(start + first + v * LANES)) for v in range(tiles.vectors)]
            with T.serial(self.row_blocks(rows)) as row_block:
                base = keep(row_block * tiles.rows)
                registers = Registers(tiles.rows, [LANES] * tiles.vectors)
                for row in range(tiles.rows):
                    for v in range(tiles.vectors):
                        registers.set(row, v, vector_math.splat(0.0, LANES))
                with T.serial(head_dim) as d:
                    if ahead is not None:
                        for v in range(tiles.vectors):
                            ahead.values(start + first + v * LANES, d * LANES, LANES)
                    registers.multiply_add(partial(_spread, self.query, base, d), partial(_keys_at, keys, d))
                for row in range(tiles.rows):
                    for v, factor in enumerate(factors):
                        score = registers.get(row, v)
                        score = score if factor is None else score * factor
                        store(self.scores, score, [base + row, first + v * LANES])

    def _soften(
        self,
        rows: Any,
        start: Any,
        key_blocks: Any,
        visible: Callable[..., Any],
        scales: Scales | None,
    ) -> None:
        """Turn S into P, and bring m, l and the factor a up to date."""
        width = self.tiles.block_keys
        lane = T.ramp(i32(0), 1, LANES)
        with T.serial(rows) as row:
            low, high = visible(row)
            high = keep(high - start)
            low = None if low is None else keep(low - start)
            highest = T.alloc_buffer((LANES,), "float32", scope="global")
            store(highest, vector_math.splat(NOTHING, LANES), [i32(0)])
            with T.serial(key_blocks) as block:
                for v in range(self.tiles.vectors):
                    place = block * width + v * LANES
                    key = T.Broadcast(place, LANES) + lane
                    seen = key < T.Broadcast(high, LANES)
                    if low is not None:
                        seen = tirx.And(seen, key >= T.Broadcast(low, LANES))
                    score = keep(
                        T.Select(seen, load(self.scores, [row, place]), vector_math.splat(MASKED, LANES))
                    )
                    store(self.scores, score, [row, place])
                    store(highest, T.max(load(highest, [i32(0)]), score), [i32(0)])
            before = keep(self.maximum[row])
            after = keep(T.max(before, across(load(highest, [i32(0)]), T.max)))
            shrink = keep(vector_math.exp2(before - after, keep))
            T.buffer_store(self.maximum, after, [row])
            T.buffer_store(self.shrink, shrink, [row])
            total = T.alloc_buffer((LANES,), "float32", scope="global")
            store(total, load(self.sums, [row, i32(0)]) * T.Broadcast(shrink, LANES), [i32(0)])
            with T.serial(key_blocks) as block:
                for v in range(self.tiles.vectors):
                    place = block * width + v * LANES
                    score = load(self.scores, [row, place]) - T.Broadcast(after, LANES)
                    weight = keep(vector_math.exp2(score, keep))
                    scaled = weight if scales is None else weight * scales.values(start + place)
                    store(self.scores, scaled, [row, place])
                    store(total, load(total, [i32(0)]) + weight, [i32(0)])
            store(self.sums, load(total, [i32(0)]), [row, i32(0)])

    def _gather(
        self, rows: Any, start: Any, count: Any, value_vector: Callable[..., Any], ahead: Prefetcher | None
    ) -> None:
        """O = a O + P V."""
        tiles = self.tiles
        for first, widths in columns(self.shape.head_dim, tiles.vectors):
            with T.serial(self.row_blocks(rows)) as row_block:
                base = keep(row_block * tiles.rows)
                registers = Registers(tiles.rows, widths)
                places = [first + begin for begin in registers.starts]
                for row in range(tiles.rows):
                    shrink = keep(self.shrink[base + row])
                    for v, width in enumerate(widths):
                        old = load(self.output, [base + row, i32(places[v])], width)
                        registers.set(row, v, old * T.Broadcast(shrink, width))
                with T.serial(tirx.floordiv(count + LANES - 1, LANES)) as group:
                    values = value_vector(start + group * LANES)
                    with T.serial(tirx.min(count - group * LANES, i32(LANES))) as key:
                        if ahead is not None and first == 0:
                            later = start + tiles.tile_keys + group * LANES
                            ahead.keys(later, key * self.shape.head_dim, self.shape.head_dim)
                        registers.multiply_add(
                            partial(_spread, self.scores, base, group * LANES + key),
                            partial(_values_at, values, key, places, widths),
                        )
                for row in range(tiles.rows):
                    for v, width in enumerate(widths):
                        store(self.output, registers.get(row, v), [base + row, i32(places[v])], width)

    def total(self, row: Any) -> Any:
        """The sum l of a row's weights over all keys that it saw."""
        return across(load(self.sums, [row, i32(0)]), lambda a, b: a + b)


def across(vector: Any, combine: Callable[[Any, Any], Any], width: int = LANES) -> Any:
    """Reduce the lanes of a vector, a power of two of them, to one number by halves."""
    while width > 1:
        width //= 2
        whole = keep(vector)
        low = T.Shuffle([whole], [i32(i) for i in range(width)])
        high = T.Shuffle([whole], [i32(i + width) for i in range(width)])
        vector = combine(low, high)
    return vector


def _spread(matrix: Any, first_row: Any, column: Any, row: int) -> Any:
    """The scalar that a row of a register block multiplies with."""
    return matrix[first_row + row, column]


def _keys_at(keys: list[Callable[[Any], Any]], feature: Any, vector: int) -> Any:
    return keys[vector](feature)


def _values_at(
    values: Callable[[Any, int, int], Any], key: Any, places: list[int], widths: list[int], vector: int
) -> Any:
    return values(key, places[vector], widths[vector])
