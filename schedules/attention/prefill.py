"""Attention of many new tokens: to one another (ragged), and to what the cache holds already (paged)."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.parameters import (
    LOG2_E,
    History,
    build,
    find_sequence,
    indices,
    scalar,
    size,
    tensor,
    unused_rotary,
    write_rows,
)
from awq_tvm.schedules.attention.shape import LANES, AttentionConfig, AttentionShape
from awq_tvm.schedules.attention.tile import Tile, i32, keep, load, only_if, vector_at


def prefill_ragged(shape: AttentionShape, config: AttentionConfig) -> tirx.PrimFunc:
    """New tokens against one another: q [n, heads, D], k and v [n, kv_heads, D] -> output, log_sum.

    Keys are first transposed into vectors of 16, once for all query tiles. A tile takes consecutive rows of
    (token, head of the group), so it loses nothing to odd group sizes. Short and long causal tiles alternate,
    so that equal shares of slots are about equal shares of work.
    """
    tiles = config.tiles
    group, head_dim, kv_heads = shape.group, shape.head_dim, shape.kv_heads

    def emit() -> None:
        batch, total, keys = size("batch"), size("total"), size("keys")
        q = tensor("q", (total, shape.heads, head_dim), shape.dtype)
        q_indptr = indices("q_indptr", (batch + 1,))
        k = tensor("k", (keys, kv_heads, head_dim), shape.dtype)
        v = tensor("v", (keys, kv_heads, head_dim), shape.dtype)
        k_indptr = indices("k_indptr", (batch + 1,))
        indices("q_position", (total,))
        indices("key_position", (batch,))
        output = tensor("output", (total, shape.heads, head_dim), shape.dtype)
        log_sum = tensor("log_sum", (total, shape.heads))
        causal = scalar("causal", "int32")
        unused_rotary()
        softmax_scale = scalar("softmax_scale", "float32")
        scale = keep(softmax_scale * tirx.const(LOG2_E, "float32"))

        key_slots = tirx.floordiv(keys, i32(LANES)) + batch
        packed = T.alloc_buffer((key_slots * kv_heads * head_dim * LANES,), "float32", scope="global")

        def key_tiles(sequence: Any) -> Any:
            return tirx.floordiv(k_indptr[sequence + 1] - k_indptr[sequence] + i32(LANES - 1), i32(LANES))

        def packed_at(slot: Any, head: Any) -> Any:
            return keep((slot * kv_heads + head) * (head_dim * LANES))

        with T.parallel(key_slots) as slot, find_sequence(batch, key_tiles, slot) as (sequence, tile):
            begin = keep(k_indptr[sequence] + tile * LANES)
            count = keep(tirx.min(k_indptr[sequence + 1] - begin, i32(LANES)))
            with T.serial(kv_heads) as head:
                base = packed_at(slot, head)
                with T.serial(LANES) as key, T.serial(head_dim) as d:
                    value = tirx.if_then_else(
                        key < count, k[begin + key, head, d].astype("float32"), tirx.const(0, "float32")
                    )
                    T.buffer_store(packed, value, [base + d * LANES + key])

        def row_tiles(sequence: Any) -> Any:
            rows = (q_indptr[sequence + 1] - q_indptr[sequence]) * group
            return tirx.floordiv(rows + i32(tiles.tile_rows - 1), i32(tiles.tile_rows))

        slots = keep(tirx.floordiv(total * group, i32(tiles.tile_rows)) + batch)
        with T.parallel(slots * kv_heads) as item:
            head = keep(tirx.floormod(item, i32(kv_heads)))
            order = keep(tirx.floordiv(item, i32(kv_heads)))
            half = keep(tirx.floordiv(order, i32(2)))
            slot = keep(tirx.Select(tirx.floormod(order, i32(2)) == 0, half, slots - 1 - half))
            with find_sequence(batch, row_tiles, slot) as (sequence, row_tile):
                q_begin, k_begin = keep(q_indptr[sequence]), keep(k_indptr[sequence])
                q_length = keep(q_indptr[sequence + 1] - q_begin)
                k_length = keep(k_indptr[sequence + 1] - k_begin)
                first_row = keep(row_tile * tiles.tile_rows)
                rows = keep(tirx.min(q_length * group - first_row, i32(tiles.tile_rows)))
                slot_before = T.alloc_buffer((1,), "int32", scope="global")
                T.buffer_store(slot_before, i32(0), [i32(0)])
                with T.serial(sequence) as earlier:
                    T.buffer_store(slot_before, slot_before[0] + key_tiles(earlier), [i32(0)])
                first_slot = keep(slot_before[0])

                def token(row: Any) -> Any:
                    return tirx.floordiv(first_row + row, i32(group))

                def place(row: Any) -> tuple[Any, Any]:
                    return q_begin + token(row), head * group + tirx.floormod(first_row + row, i32(group))

                def visible(row: Any) -> tuple[Any | None, Any]:
                    own = token(row) + (k_length - q_length)
                    high = tirx.Select(causal > 0, own + 1, k_length)
                    low = None if shape.sliding_window is None else own - i32(shape.sliding_window - 1)
                    return low, high

                def key_vector(first: Any) -> Any:
                    # A register block of keys may reach beyond the last: read that again, the scores are masked.
                    slot = tirx.min(first_slot + tirx.floordiv(first, i32(LANES)), key_slots - 1)
                    base = packed_at(slot, head)
                    return lambda feature: packed[vector_at(base + feature * LANES)]

                def value_vector(first: Any) -> Any:
                    base = keep(k_begin + first)
                    return lambda key, feature, width: load(v, [base + key, head, i32(feature)], width)

                tile = Tile(shape, tiles)
                tile.start(rows, _query_reader(q, place, scale))
                low, _ = visible(i32(0))
                _, high = visible(rows - 1)
                start = i32(0) if low is None else _whole_vectors(low)
                tile.see(rows, keep(start), keep(high), key_vector, value_vector, visible)
                write_rows(tile, rows, place, output, log_sum, shape)

    return build("attention_prefill_ragged", emit)


def prefill_paged(shape: AttentionShape, config: AttentionConfig) -> tirx.PrimFunc:
    """New tokens q [n, heads, D] against the tokens already in the cache -> output, log_sum.

    Every new token sees all cached ones, but for the sliding window, which is told by absolute positions.
    """
    tiles = config.tiles
    group, head_dim, kv_heads = shape.group, shape.head_dim, shape.kv_heads

    def emit() -> None:
        batch, total = size("batch"), size("total")
        q = tensor("q", (total, shape.heads, head_dim), shape.dtype)
        q_indptr = indices("q_indptr", (batch + 1,))
        history = History(shape, batch)
        q_position = indices("q_position", (total,))
        output = tensor("output", (total, shape.heads, head_dim), shape.dtype)
        log_sum = tensor("log_sum", (total, shape.heads))
        scalar("causal", "int32")
        unused_rotary()
        softmax_scale = scalar("softmax_scale", "float32")
        flat = history.pages.flatten()
        scale = keep(softmax_scale * tirx.const(LOG2_E, "float32"))

        def row_tiles(sequence: Any) -> Any:
            rows = (q_indptr[sequence + 1] - q_indptr[sequence]) * group
            return tirx.floordiv(rows + i32(tiles.tile_rows - 1), i32(tiles.tile_rows))

        slots = keep(tirx.floordiv(total * group, i32(tiles.tile_rows)) + batch)
        with T.parallel(slots * kv_heads) as item:
            head = keep(tirx.floormod(item, i32(kv_heads)))
            slot = keep(tirx.floordiv(item, i32(kv_heads)))
            with find_sequence(batch, row_tiles, slot) as (sequence, row_tile):
                q_begin = keep(q_indptr[sequence])
                first_row = keep(row_tile * tiles.tile_rows)
                all_rows = (q_indptr[sequence + 1] - q_begin) * group
                rows = keep(tirx.min(all_rows - first_row, i32(tiles.tile_rows)))
                length = keep(history.length(sequence))

                def place(row: Any) -> tuple[Any, Any]:
                    token = q_begin + tirx.floordiv(first_row + row, i32(group))
                    return token, head * group + tirx.floormod(first_row + row, i32(group))

                def visible(row: Any) -> tuple[Any | None, Any]:
                    if shape.sliding_window is None:
                        return None, length
                    own = q_position[place(row)[0]] - history.key_position[sequence]
                    return own - i32(shape.sliding_window - 1), length

                tile = Tile(shape, tiles)
                tile.start(rows, _query_reader(q, place, scale))
                page_of = history.page_of(sequence)
                keys, values = history.readers(flat, page_of, head)
                scales = history.scales(page_of, head)
                start = keep(i32(0))
                if shape.sliding_window is not None:
                    lowest = T.alloc_buffer((1,), "int32", scope="global")
                    T.buffer_store(lowest, length, [i32(0)])
                    with T.serial(rows) as row:
                        # Sequences forked from a common prefix come as one, so positions need not ascend.
                        T.buffer_store(lowest, tirx.min(lowest[0], visible(row)[0]), [i32(0)])
                    start = keep(_whole_vectors(lowest[0]))
                with only_if(start < length):
                    tile.see(rows, start, length, keys, values, visible, scales=scales)
                write_rows(tile, rows, place, output, log_sum, shape)

    return build("attention_prefill_paged", emit)


def _query_reader(q: Any, place: Any, scale: Any) -> Any:
    def read(row: Any, feature: int, width: int) -> Any:
        token, head = place(row)
        return load(q, [token, head, i32(feature)], width) * T.Broadcast(scale, width)

    return read


def _whole_vectors(low: Any) -> Any:
    """The first key of the vector that ``low`` lies in, not below 0."""
    return tirx.floordiv(tirx.max(low, i32(0)), i32(LANES)) * LANES
