"""What the attention kernels share: the parameters that the cache runtime passes, and how to read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm import ir_attrs
from awq_tvm.schedules.attention.shape import PAGE_SIZE, SCALE_BYTES, AttentionShape
from awq_tvm.schedules.attention.tile import (
    NOTHING,
    Prefetcher,
    Scales,
    columns,
    f32,
    i32,
    keep,
    load,
    only_if,
    store,
)
from awq_tvm.schedules.cpu.vectors import prefetch
from awq_tvm.schedules.frame import OPAQUE

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG2_E = math.log2(math.e)


def build(name: str, emit: Callable[[], None], *, overlaps: bool = False) -> tirx.PrimFunc:
    """A PrimFunc from statements emitted by ``emit``, marked as scheduled.

    Args:
        name: of the function.
        emit: emits its body.
        overlaps: it is a part of decoding, and OverlapLaunches may let its kernels begin early.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        attributes = {ir_attrs.IS_SCHEDULED: True, "tirx.noalias": True, "op_pattern": OPAQUE}
        T.func_attr({"global_symbol": name, **attributes, **({ir_attrs.OVERLAPS: True} if overlaps else {})})
        emit()
    return builder.get()


def tensor(name: str, shape: tuple[Any, ...], dtype: str = "float32") -> Any:
    """A tensor parameter that starts at its data pointer."""
    return IRBuilder.name(name, T.match_buffer(T.arg(f"{name}_handle", T.handle()), shape, dtype))


def indices(name: str, shape: tuple[Any, ...]) -> Any:
    """An int32 parameter that may lie anywhere in a larger array, as the runtime packs them."""
    offset = tirx.Var(f"{name}_offset", "int32")
    handle = T.arg(f"{name}_handle", T.handle())
    return IRBuilder.name(name, T.match_buffer(handle, shape, "int32", elem_offset=offset))


def scalar(name: str, dtype: str) -> Any:
    """A number parameter."""
    return T.arg(name, tirx.Var(name, dtype))


def unused_rotary() -> None:
    """Declare those of a rotation within kernels, which the cache never asks for: queries and keys come rotated."""
    scalar("rotary_mode", "int32")
    scalar("rope_scale", "float32")
    scalar("rope_theta", "float32")


def size(name: str, dtype: str = "int32") -> tirx.Var:
    """A symbolic extent."""
    return tirx.Var(name, dtype)


class Pages:
    """One layer's cache, [pages, 2, kv_heads, PAGE_SIZE, head_dim], as ``AttentionShape`` describes it."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape
        self.count = size("num_pages", "int64")
        extents = (self.count, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim)
        self.buffer = tensor("pages", extents, shape.dtype)
        self.block = shape.block
        self.flat: Any = None
        self.scales: Any = None

    def flatten(self) -> Any:
        """The cache as one run of numbers, once all parameters are declared; where it has scales, those too."""
        whole = self.count * (2 * self.shape.kv_heads * self.block)
        self.flat = T.decl_buffer((whole,), self.shape.page_dtype, data=self.buffer.data)
        if self.shape.int8_pages:
            count = tirx.floordiv(whole, tirx.const(SCALE_BYTES, "int64"))
            self.scales = T.decl_buffer((count,), "float32", data=self.buffer.data)
        return self.flat

    def scale_at(self, base: Any) -> Any:
        """Where the 16 scales are, in ``scales``, of the keys or values that begin at ``base``."""
        codes = tirx.const(PAGE_SIZE * self.shape.head_dim, "int64")
        return tirx.floordiv(base + codes, tirx.const(SCALE_BYTES, "int64"))

    def keys(self, page: Any, head: Any) -> Any:
        """Where feature 0 of the page's keys begins; feature d is PAGE_SIZE * d further."""
        return self._base(page, head, 0)

    def values(self, page: Any, head: Any) -> Any:
        """Where the page's value 0 begins; value j is head_dim * j further."""
        return self._base(page, head, 1)

    def _base(self, page: Any, head: Any, half: int) -> Any:
        plane = page.astype("int64") * (2 * self.shape.kv_heads) + half * self.shape.kv_heads
        return keep((plane + head.astype("int64")) * self.block)


CACHE_LINE = 64


class History:
    """The cached tokens of each sequence, as the paged kernels are told of them."""

    def __init__(self, shape: AttentionShape, batch: tirx.Var) -> None:
        self.shape = shape
        self.pages = Pages(shape)
        self.page_indptr = indices("page_indptr", (batch + 1,))
        self.page_values = indices("page_values", (size("nnz_pages"),))
        self.last_page_length = indices("last_page_length", (batch,))
        self.key_position = indices("key_position", (batch,))

    def length(self, sequence: Any) -> Any:
        """Tokens of a sequence in the cache."""
        count = self.page_indptr[sequence + 1] - self.page_indptr[sequence]
        whole = (count - 1) * i32(PAGE_SIZE) + self.last_page_length[sequence]
        return tirx.Select(count > 0, whole, i32(0))

    def page_of(self, sequence: Any) -> Callable[[Any], Any]:
        """What says in which page a key of a sequence lies."""
        begin = keep(self.page_indptr[sequence])
        last = keep(self.page_indptr[sequence + 1] - 1)
        # A register block of keys may reach beyond the last page: read that again, the scores are masked.
        return lambda key: self.page_values[tirx.min(begin + tirx.floordiv(key, i32(PAGE_SIZE)), last)]

    def prefetcher(self, flat: Any, page_of: Callable[[Any], Any], head: Any) -> Prefetcher:
        """What asks for keys and values before they are read; ``flat`` from ``Pages.flatten``."""
        line = CACHE_LINE // np.dtype(self.shape.page_dtype).itemsize

        def ask(half: Callable[[Any, Any], Any], first_key: Any, first: Any, count: int) -> None:
            start = half(page_of(first_key), head) + _wide(first)
            for offset in range(0, count, line):
                prefetch(flat, [start + offset])

        return Prefetcher(partial(ask, self.pages.keys), partial(ask, self.pages.values))

    def readers(
        self, flat: Any, page_of: Callable[[Any], Any], head: Any
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The key and value accessors that ``Tile.see`` asks for; ``flat`` from ``Pages.flatten``."""
        head_dim = self.shape.head_dim

        def keys(first: Any) -> Callable[[Any], Any]:
            base = self.pages.keys(page_of(first), head)
            return lambda feature: load(flat, [base + _wide(feature) * PAGE_SIZE])

        def values(first: Any) -> Callable[[Any, int, int], Any]:
            base = self.pages.values(page_of(first), head)
            return lambda key, feature, width: load(flat, [base + _wide(key) * head_dim + feature], width)

        return keys, values

    def scales(self, page_of: Callable[[Any], Any], head: Any) -> Scales | None:
        """The scales of keys and values that ``Tile.see`` asks for, or None where pages have none."""
        if not self.shape.int8_pages:
            return None

        def of(half: Callable[[Any, Any], Any], first: Any) -> Any:
            return load(self.pages.scales, [self.pages.scale_at(half(page_of(first), head))])

        return Scales(partial(of, self.pages.keys), partial(of, self.pages.values))


def _wide(index: Any) -> Any:
    return index.astype("int64") if hasattr(index, "astype") else tirx.const(index, "int64")


def write_rows(
    tile: Any,
    rows: Any,
    place: Callable[[Any], tuple[Any, Any]],
    output: Any,
    log_sum: Any,
    shape: AttentionShape,
) -> None:
    """Write a finished tile: output = O / l, log_sum = m + log2(l); a row that saw no key gives 0.

    Args:
        tile: the ``Tile``.
        rows: number of rows in use.
        place: row -> (token, query head).
        output: [tokens, heads, head_dim].
        log_sum: [tokens, heads] float32, in units of log2.
        shape: the sizes.
    """
    with T.serial(rows) as row:
        token, head = (keep(index) for index in place(row))
        total = keep(tile.total(row))
        seen = keep(total > f32(0))
        inverse = keep(T.Select(seen, f32(1) / T.Select(seen, total, f32(1)), f32(0)))
        for start, widths in columns(shape.head_dim, 1):
            value = load(tile.output, [row, i32(start)], widths[0]) * T.Broadcast(inverse, widths[0])
            store(output, value, [token, head, i32(start)], widths[0])
        T.buffer_store(
            log_sum,
            tirx.Select(seen, tile.maximum[row] + tirx.log2(T.Select(seen, total, f32(1))), f32(NOTHING)),
            [token, head],
        )


@contextmanager
def find_sequence(batch: Any, tiles_of: Callable[[Any], Any], slot: Any) -> Iterator[tuple[Any, Any]]:
    """Run the enclosed statements for the sequence that a slot falls into, if any.

    Tiles of all sequences lie one after another; there may be more slots than tiles.

    Args:
        batch: number of sequences.
        tiles_of: sequence -> number of its tiles.
        slot: which tile.

    Yields:
        (sequence, tile within it).
    """
    found = T.alloc_buffer((2,), "int32", scope="global")
    rest = T.alloc_buffer((1,), "int32", scope="global")
    T.buffer_store(found, i32(-1), [i32(0)])
    T.buffer_store(rest, slot, [i32(0)])
    with T.serial(batch) as sequence:
        count = keep(tiles_of(sequence))
        with only_if(tirx.And(rest[0] >= 0, rest[0] < count)):
            T.buffer_store(found, sequence, [i32(0)])
            T.buffer_store(found, rest[0], [i32(1)])
        T.buffer_store(rest, rest[0] - count, [i32(0)])
    with only_if(found[0] >= 0):
        yield found[0], found[1]
