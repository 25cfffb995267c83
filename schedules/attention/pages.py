"""Kernels that move keys and values in and out of pages (``AttentionShape`` says how a page is laid out)."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules import vector_math
from awq_tvm.schedules.attention.parameters import Pages, build, indices, scalar, size, tensor
from awq_tvm.schedules.attention.shape import LANES, PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import across, columns, f32, i32, keep, load, only_if, store

FEW_TOKENS = 4
"""Up to here one core is done sooner than the others wake."""


def append(shape: AttentionShape) -> tirx.PrimFunc:
    """Write new k, v [n, kv_heads, D] to slots position_map [n] (page * PAGE_SIZE + token; -1: nowhere).

    To int8 pages as the nearest of the 255 multiples of scale = max |x| / 127 over a token's head.
    """

    def emit() -> None:
        pages = Pages(shape)
        tokens = size("tokens", "int64")
        k = tensor("k", (tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        v = tensor("v", (tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        position_map = indices("position_map", (tokens,))
        flat = pages.flatten()

        def one(token: Any) -> None:
            slot = keep(position_map[token])
            with only_if(slot >= 0), T.serial(shape.kv_heads) as head:
                page, place = _page_and_place(slot)
                keys, values = pages.keys(page, head), pages.values(page, head)
                if shape.int8_pages:
                    key_factor = _write_scale(pages, k, [token, head], keys, place)
                    value_factor = _write_scale(pages, v, [token, head], values, place)
                with T.serial(shape.head_dim) as d:
                    key = k[token, head, d]
                    if shape.int8_pages:
                        key = tirx.nearbyint(key.astype("float32") * key_factor).astype("int8")
                    T.buffer_store(flat, key, [keys + d.astype("int64") * PAGE_SIZE + place])
                for first, widths in columns(shape.head_dim, 1):
                    value = load(v, [token, head, i32(first)], widths[0])
                    if shape.int8_pages:
                        value = tirx.nearbyint(value * T.Broadcast(value_factor, widths[0]))
                    store(flat, value, [values + place * shape.head_dim + first], widths[0])

        with T.If(tokens > FEW_TOKENS):
            with T.Then(), T.parallel(tokens) as token:
                one(token)
            with T.Else(), T.serial(tokens) as token:
                one(token)

    return build("kv_cache_append", emit)


def copy_page(shape: AttentionShape) -> tirx.PrimFunc:
    """Copy a page, for a sequence forked within it. All of it: what lies beyond copy_length is never read."""

    def emit() -> None:
        pages = Pages(shape)
        source, target = scalar("source", "int64"), scalar("target", "int64")
        scalar("copy_length", "int64")
        flat = pages.flatten()
        zero = tirx.const(0, "int64")
        from_base, to_base = pages.keys(source, zero), pages.keys(target, zero)
        with T.serial(2 * shape.kv_heads * pages.block // LANES) as i:
            offset = i.astype("int64") * LANES
            store(flat, load(flat, [from_base + offset]), [to_base + offset])

    return build("kv_cache_copy_page", emit)


def compact(shape: AttentionShape) -> tirx.PrimFunc:
    """Move tokens to other slots, sequence by sequence, in the order given (a token tree was settled)."""

    def emit() -> None:
        pages = Pages(shape)
        moves = size("moves")
        indptr = indices("copy_length_indptr", (size("batch_plus_one"),))
        positions = indices("copy_positions", (2, moves))
        batch = scalar("batch", "int32")
        flat = pages.flatten()
        with T.serial(batch) as sequence:
            begin = keep(indptr[sequence])
            with T.serial(indptr[sequence + 1] - begin) as i, T.serial(shape.kv_heads) as head:
                from_page, from_place = _page_and_place(keep(positions[0, begin + i]))
                to_page, to_place = _page_and_place(keep(positions[1, begin + i]))
                from_keys, to_keys = pages.keys(from_page, head), pages.keys(to_page, head)
                from_values, to_values = pages.values(from_page, head), pages.values(to_page, head)
                with T.serial(shape.head_dim) as feature:
                    d = feature.astype("int64")
                    key = flat[from_keys + d * PAGE_SIZE + from_place]
                    T.buffer_store(flat, key, [to_keys + d * PAGE_SIZE + to_place])
                    value = flat[from_values + from_place * shape.head_dim + d]
                    T.buffer_store(flat, value, [to_values + to_place * shape.head_dim + d])
                if shape.int8_pages:
                    for source, target in ((from_keys, to_keys), (from_values, to_values)):
                        scale = pages.scales[pages.scale_at(source) + from_place]
                        T.buffer_store(pages.scales, scale, [pages.scale_at(target) + to_place])

    return build("kv_cache_compact", emit)


def read_back(shape: AttentionShape, layers: int) -> tirx.PrimFunc:
    """Cached tokens at position_map [n] of one layer -> k, v [layers, n, kv_heads, D] at ``layer``."""

    def emit() -> None:
        pages = Pages(shape)
        tokens = size("tokens", "int64")
        position_map = indices("position_map", (tokens,))
        k = tensor("k", (layers, tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        v = tensor("v", (layers, tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        layer = scalar("layer", "int64")
        flat = pages.flatten()
        with T.serial(tokens) as token, T.serial(shape.kv_heads) as head:
            page, place = _page_and_place(keep(position_map[token]))
            keys, values = pages.keys(page, head), pages.values(page, head)
            with T.serial(shape.head_dim) as feature:
                d = feature.astype("int64")
                key, value = flat[keys + d * PAGE_SIZE + place], flat[values + place * shape.head_dim + d]
                if shape.int8_pages:
                    key = key.astype("float32") * pages.scales[pages.scale_at(keys) + place]
                    value = value.astype("float32") * pages.scales[pages.scale_at(values) + place]
                T.buffer_store(k, key.astype(shape.dtype), [layer, token, head, feature])
                T.buffer_store(v, value.astype(shape.dtype), [layer, token, head, feature])

    return build("kv_cache_read_back", emit)


def _write_scale(pages: Pages, x: Any, row: list[Any], base: Any, place: Any) -> Any:
    """Write the scale of x[*row, :] for a token's place in the half page at ``base``.

    Returns:
        1 / scale, or 0 where that would be no number.
    """
    head_dim = pages.shape.head_dim
    width = LANES if head_dim >= LANES else 8
    # The last vector overlaps where the features are not a multiple.
    starts = sorted({*range(0, head_dim - width + 1, width), head_dim - width})
    highest = T.alloc_buffer((width,), "float32", scope="global")
    store(highest, vector_math.splat(0.0, width), [i32(0)], width)
    for first in starts:
        value = keep(load(x, [*row, i32(first)], width))
        largest = T.max(value, vector_math.splat(0.0, width) - value)
        store(highest, T.max(load(highest, [i32(0)], width), largest), [i32(0)], width)
    scale = keep(across(load(highest, [i32(0)], width), T.max, width) * f32(1 / 127))
    T.buffer_store(pages.scales, scale, [pages.scale_at(base) + place])
    some = scale > f32(1e-30)
    return keep(T.Select(some, f32(1) / T.Select(some, scale, f32(1)), f32(0)))


def _page_and_place(slot: Any) -> tuple[Any, Any]:
    """(page, token within it) of a slot; the token as int64 for address arithmetic."""
    page = keep(tirx.floordiv(slot, i32(PAGE_SIZE)))
    place = keep(tirx.floormod(slot, i32(PAGE_SIZE)))
    return page, place.astype("int64")
