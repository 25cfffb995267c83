"""The functions around prefill kernels: their parameters, tiles of rows, and where keys and values lie.

A row is a token and one of the query heads that share a key-value head, in this order, so a tile of rows loses
nothing to odd groups, and reads a key once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import vector_length
from awq_tvm.schedules.attention.gpu.lanes import (
    WARP,
    Exchange,
    as_words,
    combine_lanes,
    halves_of,
    held,
    registers,
)
from awq_tvm.schedules.attention.parameters import (
    LOG2_E,
    History,
    build,
    indices,
    scalar,
    size,
    tensor,
    unused_rotary,
)
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import f32, i32


@dataclass(frozen=True)
class Queries:
    """The new tokens of all sequences, one after the other, and what becomes of them.

    Attributes:
        shape: of the attention.
        batch: sequences.
        total: tokens.
        q: [total, heads, D].
        indptr: [batch + 1], where a sequence's tokens begin.
        output: as q.
        log_sum: [total, heads] float32, in units of log2.
        softmax_scale: float32.
    """

    shape: AttentionShape
    batch: Any
    total: Any
    q: Any
    indptr: Any
    output: Any
    log_sum: Any
    softmax_scale: Any

    def scale(self) -> Any:
        """Emit what a product of q and k is multiplied with to be in units of log2."""
        return held("scale", self.softmax_scale * f32(LOG2_E), "float32")

    def slots(self, tile_rows: int) -> Any:
        """As many as there can be tiles of so many rows, or more."""
        return tirx.floordiv(self.total * i32(self.shape.group), i32(tile_rows)) + self.batch

    def find(self, slot: Any, tile_rows: int) -> tuple[Any, Any]:
        """Emit the search for a slot's tile: its sequence, or -1, and its number there."""
        found, rest = registers("found", 2, "int32"), registers("rest", 1, "int32")
        T.buffer_store(found, i32(-1), [0])
        T.buffer_store(found, i32(0), [1])
        T.buffer_store(rest, slot, [0])
        with T.serial(self.batch) as sequence:
            rows = (self.indptr[sequence + 1] - self.indptr[sequence]) * i32(self.shape.group)
            tiles = held("tiles", tirx.truncdiv(rows + i32(tile_rows - 1), i32(tile_rows)))
            with T.If(T.And(rest[0] >= 0, rest[0] < tiles)), T.Then():
                T.buffer_store(found, sequence, [0])
                T.buffer_store(found, rest[0], [1])
            T.buffer_store(rest, rest[0] - tiles, [0])
        return found[0], found[1]


class Rows:
    """The rows of a tile. Those beyond a sequence's last are read as the last, and not stored.

    Args:
        queries: of all sequences.
        sequence: whose tile it is.
        kv_head: of its query heads.
        first: row of the sequence.
        most: rows of a tile.
    """

    def __init__(self, queries: Queries, sequence: Any, kv_head: Any, first: Any, most: int) -> None:
        group = i32(queries.shape.group)
        self._queries, self._group = queries, group
        self._begin = held("q_begin", queries.indptr[sequence])
        self._first, self._first_head = held("first_row", first), held("first_head", kv_head * group)
        self.tokens = held("q_length", queries.indptr[sequence + 1] - self._begin)
        self.count = held("rows", tirx.min(self.tokens * group - self._first, i32(most)))

    def inside(self, row: Any) -> Any:
        """The row, or the last."""
        return tirx.min(row, self.count - 1)

    def token(self, row: Any) -> Any:
        """Which of the sequence's tokens a row inside is."""
        return tirx.truncdiv(self._first + row, self._group)

    def place(self, row: Any) -> tuple[Any, Any]:
        """Token and query head of a row inside, as q, output and log_sum have them."""
        index = held("row_index", self._first + row)
        token = tirx.truncdiv(index, self._group)
        return self._begin + token, self._first_head + (index - token * self._group)

    def vector(self, row: Any, vector: Any) -> Any:
        """Where a vector of 16 bytes of a row inside is, in ``as_words`` of q or output."""
        token, head = self.place(row)
        shape = self._queries.shape
        return (token * shape.heads + head) * (shape.head_dim // vector_length(shape)) + vector


class NewKeys:
    """Keys and values of the new tokens themselves, k and v [keys, kv_heads, D].

    Args:
        queries: that see them.
        k: keys.
        v: values.
        indptr: [batch + 1], where a sequence's keys begin.
        causal: whether a token sees only those before it and itself; not 0 for yes.
    """

    def __init__(self, queries: Queries, k: Any, v: Any, indptr: Any, causal: Any) -> None:
        self._queries, self._k, self._v, self._indptr, self._causal = queries, k, v, indptr, causal

    def of(self, rows: Rows, sequence: Any, kv_head: Any, runs: int) -> KeysOfRows:
        """Emit what is the same for all keys of a tile of rows, which are read in tiles of so many runs."""
        shape = self._queries.shape
        vectors = shape.head_dim // vector_length(shape)
        begin = held("k_begin", self._indptr[sequence])
        length = held("k_length", self._indptr[sequence + 1] - begin)
        buffers = [as_words(x, x.shape[0] * (shape.kv_heads * vectors)) for x in (self._k, self._v)]

        def seen(row: Any) -> tuple[Any | None, Any]:
            own = rows.token(row) + (length - rows.tokens)
            low = None if shape.sliding_window is None else own - i32(shape.sliding_window - 1)
            return low, T.Select(self._causal != 0, own + 1, length)

        def place(half: int, run: int, key: Any, vector: Any) -> tuple[Any, Any]:
            at = ((begin + key) * shape.kv_heads + kv_head) * vectors + vector
            return buffers[half], at

        return KeysOfRows(seen, lambda first, last: None, place)


class CachedKeys:
    """Keys and values in pages, [pages, 2, kv_heads, PAGE_SIZE, D]: every new token sees them all, or a window.

    Args:
        queries: that see them.
        history: the pages.
        q_position: [total], where in its sequence a token is. Sequences forked from one with a common history come as
            one, so positions need not ascend.
    """

    def __init__(self, queries: Queries, history: History, q_position: Any) -> None:
        self._queries, self._history, self._q_position = queries, history, q_position

    def of(self, rows: Rows, sequence: Any, kv_head: Any, runs: int) -> KeysOfRows:
        """Emit what is the same for all keys of a tile of rows, which are read in tiles of so many runs."""
        shape, history = self._queries.shape, self._history
        vectors = shape.head_dim // vector_length(shape)
        half_page = shape.kv_heads * PAGE_SIZE * vectors
        words = as_words(history.pages.buffer, history.pages.count * (2 * half_page))
        length = held("k_length", history.length(sequence))
        begin = held("page_begin", history.page_indptr[sequence])
        pages = registers("pages", runs, "int32")

        def seen(row: Any) -> tuple[Any | None, Any]:
            if shape.sliding_window is None:
                return None, length
            token, _ = rows.place(row)
            own = self._q_position[token] - history.key_position[sequence]
            return own - i32(shape.sliding_window - 1), length

        def ask(firsts: list[Any], last: Any) -> None:
            for run, first in enumerate(firsts):
                number = tirx.truncdiv(tirx.min(first, last), i32(PAGE_SIZE))
                T.buffer_store(pages, history.page_values[begin + number], [run])

        def place(half: int, run: int, key: Any, vector: Any) -> tuple[Any, Any]:
            base = pages[run] * i32(2 * half_page) + (kv_head * (PAGE_SIZE * vectors) + half * half_page)
            at = base + tirx.truncmod(key, i32(PAGE_SIZE)) * vectors + vector
            return words, at

        return KeysOfRows(seen, ask, place)


Seen = Callable[[Any], tuple[Any | None, Any]]
"""Row -> (the first key that it sees, None where that is the first of all; the end of those that it sees)."""


@dataclass(frozen=True)
class KeysOfRows:
    """The keys and values of one key-value head that a tile's rows may see.

    Attributes:
        seen: by a row.
        ask: (first keys of runs of PAGE_SIZE, each a multiple of it; the last key) emits the loads of what
            ``place`` takes for these runs.
        place: (0 for keys or 1 for values, which of the runs asked for last, a key in it, vector of 16 bytes)
            -> (``as_words``, which of its vectors).
    """

    seen: Seen
    ask: Callable[[list[Any], Any], None]
    place: Callable[[int, int, Any, Any], tuple[Any, Any]]

    def span(self, rows: Rows, lane: Any, tile_rows: int, exchange: Exchange) -> tuple[Any, Any]:
        """Emit the first key that any row of a tile sees, of a page, and the end of those; every lane must come."""
        first, end = registers("first_seen", 1, "int32"), registers("end_seen", 1, "int32")
        windowed = False
        for number in range(0, tile_rows, WARP):
            low, high = self.seen(rows.inside(lane + number))
            T.buffer_store(end, high if number == 0 else tirx.max(end[0], high), [0])
            if low is not None:
                windowed = True
                T.buffer_store(first, low if number == 0 else tirx.min(first[0], low), [0])
        # In turn: neither waits for the other.
        for distance in halves_of(WARP):
            combine_lanes(end, 0, tirx.max, exchange, [distance])
            if windowed:
                combine_lanes(first, 0, tirx.min, exchange, [distance])
        if not windowed:
            return i32(0), end[0]
        page = tirx.truncdiv(tirx.max(first[0], i32(0)), i32(PAGE_SIZE))
        return held("start", page * i32(PAGE_SIZE)), end[0]

    def ask_tile(self, base: Any, end: Any, tile_keys: int) -> None:
        """Emit what finds the keys of the tile from ``base`` on, if there is one."""
        with T.If(base < end), T.Then():
            self.ask([base + run for run in range(0, tile_keys, PAGE_SIZE)], end - 1)


Body = Callable[[Rows, KeysOfRows], None]
"""Emits a block's work on a tile of rows."""


def by_tiles(
    queries: Queries,
    keys: NewKeys | CachedKeys,
    tile_rows: int,
    tile_keys: int,
    threads: int,
    start: Callable[[Any], Body],
) -> None:
    """Emit the kernel: a block a key-value head and tile; the last tiles, which see the most keys, first.

    Args:
        queries: of all sequences.
        keys: that they see.
        tile_rows: rows of a block.
        tile_keys: keys of a tile.
        threads: of a block.
        start: given the thread, emits what comes before a tile is known.
    """
    slots = queries.slots(tile_rows)
    with (
        T.launch_thread("blockIdx.x", queries.shape.kv_heads) as kv_head,
        T.launch_thread("blockIdx.y", slots) as order,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        emit = start(thread)
        sequence, tile = queries.find(slots - 1 - order, tile_rows)
        with T.If(sequence >= 0), T.Then():
            rows = Rows(queries, sequence, kv_head, tile * i32(tile_rows), tile_rows)
            emit(rows, keys.of(rows, sequence, kv_head, tile_keys // PAGE_SIZE))


Launch = Callable[[Queries, NewKeys | CachedKeys], None]
"""Emits a kernel."""


def ragged_function(shape: AttentionShape, launch: Launch) -> tirx.PrimFunc:
    """The PrimFunc by which the runtime has new tokens attend to one another."""

    def emit() -> None:
        batch, total, keys = size("batch"), size("total"), size("keys")
        q = tensor("q", (total, shape.heads, shape.head_dim), shape.dtype)
        q_indptr = indices("q_indptr", (batch + 1,))
        k = tensor("k", (keys, shape.kv_heads, shape.head_dim), shape.dtype)
        v = tensor("v", (keys, shape.kv_heads, shape.head_dim), shape.dtype)
        k_indptr = indices("k_indptr", (batch + 1,))
        indices("q_position", (total,))
        indices("key_position", (batch,))
        output, log_sum = _results(shape, total)
        causal, softmax_scale = _numbers()
        queries = Queries(shape, batch, total, q, q_indptr, output, log_sum, softmax_scale)
        launch(queries, NewKeys(queries, k, v, k_indptr, causal))

    return build("attention_prefill_ragged", emit)


def paged_function(shape: AttentionShape, launch: Launch) -> tirx.PrimFunc:
    """The PrimFunc by which the runtime has new tokens attend to those in the cache."""

    def emit() -> None:
        batch, total = size("batch"), size("total")
        q = tensor("q", (total, shape.heads, shape.head_dim), shape.dtype)
        q_indptr = indices("q_indptr", (batch + 1,))
        history = History(shape, batch)
        q_position = indices("q_position", (total,))
        output, log_sum = _results(shape, total)
        _, softmax_scale = _numbers()
        queries = Queries(shape, batch, total, q, q_indptr, output, log_sum, softmax_scale)
        launch(queries, CachedKeys(queries, history, q_position))

    return build("attention_prefill_paged", emit)


def _results(shape: AttentionShape, total: Any) -> tuple[Any, Any]:
    output = tensor("output", (total, shape.heads, shape.head_dim), shape.dtype)
    return output, tensor("log_sum", (total, shape.heads))


def _numbers() -> tuple[Any, Any]:
    """``causal`` and ``softmax_scale``."""
    causal = scalar("causal", "int32")
    unused_rotary()
    return causal, scalar("softmax_scale", "float32")
