"""Attention of one new token a sequence to everything in the cache."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules import vector_math
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
from awq_tvm.schedules.attention.shape import LANES, AttentionConfig, AttentionShape
from awq_tvm.schedules.attention.tile import NOTHING, Tile, columns, f32, i32, keep, load, store

MAX_SPLITS = 16
"""Splits of one sequence and head: enough to feed the cores when heads are few."""


def decode_paged(shape: AttentionShape, config: AttentionConfig) -> tirx.PrimFunc:
    """One token a sequence, q [batch, heads, D], against its cached tokens, itself among them.

    The query heads of a key-value head go together, so a page is read once. Keys are split over
    (sequence, key-value head, run of keys), each split leaves (O, m, l), and a second pass merges them. The
    roof is the bandwidth of the level of memory that the cache lies in.
    """
    tiles = config.tiles
    group, head_dim, kv_heads = shape.group, shape.head_dim, shape.kv_heads

    def emit() -> None:
        batch = size("batch")
        q = tensor("q", (batch, shape.heads, head_dim), shape.dtype)
        history = History(shape, batch)
        q_position = indices("q_position", (batch,))
        output = tensor("output", (batch, shape.heads, head_dim), shape.dtype)
        log_sum = tensor("log_sum", (batch, shape.heads))
        unused_rotary()
        softmax_scale = scalar("softmax_scale", "float32")
        flat = history.pages.flatten()
        scale = keep(softmax_scale * tirx.const(LOG2_E, "float32"))

        # Sizes of scratch may depend on shapes alone, so the number of splits comes from the average length.
        pages_a_split = batch * i32(config.split_keys // LANES)
        wanted = tirx.floordiv(history.page_values.shape[0] + pages_a_split - 1, pages_a_split)
        most_splits = tirx.max(tirx.min(wanted, i32(MAX_SPLITS)), i32(1))
        partial = T.alloc_buffer((batch * shape.heads * most_splits, head_dim), "float32", scope="global")
        partial_max = T.alloc_buffer((batch * shape.heads * most_splits,), "float32", scope="global")
        partial_sum = T.alloc_buffer((batch * shape.heads * most_splits,), "float32", scope="global")
        splits = keep(most_splits)

        with T.parallel(batch * kv_heads * splits) as item:
            split = keep(tirx.floormod(item, splits))
            head = keep(tirx.floormod(tirx.floordiv(item, splits), i32(kv_heads)))
            sequence = keep(tirx.floordiv(item, splits * kv_heads))
            length = keep(history.length(sequence))
            low = None
            if shape.sliding_window is not None:
                own = q_position[sequence] - history.key_position[sequence]
                low = keep(tirx.max(own - i32(shape.sliding_window - 1), i32(0)))
            begin = keep(i32(0) if low is None else tirx.floordiv(low, i32(LANES)) * LANES)
            share = tirx.floordiv(length - begin + splits - 1, splits)
            share = keep(tirx.floordiv(share + i32(LANES - 1), i32(LANES)) * LANES)
            start = keep(begin + split * share)
            end = keep(tirx.min(start + share, length))
            tile = Tile(shape, tiles)

            def read(row: Any, feature: int, width: int) -> Any:
                return load(q, [sequence, head * group + row, i32(feature)], width) * T.Broadcast(
                    scale, width
                )

            tile.start(i32(group), read)
            with T.If(start < end), T.Then():
                page_of = history.page_of(sequence)
                keys, values = history.readers(flat, page_of, head)
                ahead = history.prefetcher(flat, page_of, head)
                scales = history.scales(page_of, head)
                tile.see(i32(group), start, end, keys, values, lambda row: (low, end), ahead, scales)
            with T.serial(group) as row:
                place = keep((sequence * shape.heads + head * group + row) * splits + split)
                T.buffer_store(partial_max, tile.maximum[row], [place])
                T.buffer_store(partial_sum, tile.total(row), [place])
                for first, widths in columns(head_dim, 1):
                    store(
                        partial,
                        load(tile.output, [row, i32(first)], widths[0]),
                        [place, i32(first)],
                        widths[0],
                    )

        def merge(sequence: Any) -> None:
            with T.serial(shape.heads) as head:
                base = keep((sequence * shape.heads + head) * splits)
                highest = T.alloc_buffer((1,), "float32", scope="global")
                total = T.alloc_buffer((1,), "float32", scope="global")
                T.buffer_store(highest, f32(NOTHING), [i32(0)])
                T.buffer_store(total, f32(0), [i32(0)])
                with T.serial(splits) as s:
                    T.buffer_store(highest, T.max(highest[0], partial_max[base + s]), [i32(0)])
                with T.serial(splits) as s:
                    weight = keep(vector_math.exp2(partial_max[base + s] - highest[0], keep))
                    T.buffer_store(partial_max, weight, [base + s])
                    T.buffer_store(total, total[0] + weight * partial_sum[base + s], [i32(0)])
                seen = keep(total[0] > f32(0))
                inverse = keep(T.Select(seen, f32(1) / T.Select(seen, total[0], f32(1)), f32(0)))
                for first, widths in columns(head_dim, 4):
                    parts = [(first + sum(widths[:i]), width) for i, width in enumerate(widths)]
                    sums = [T.alloc_buffer((width,), "float32", scope="global") for width in widths]
                    for (_, width), buffer in zip(parts, sums, strict=True):
                        store(buffer, vector_math.splat(0.0, width), [i32(0)], width)
                    with T.serial(splits) as s:
                        weight = keep(partial_max[base + s] * inverse)
                        for (feature, width), buffer in zip(parts, sums, strict=True):
                            more = load(partial, [base + s, i32(feature)], width) * T.Broadcast(weight, width)
                            store(buffer, load(buffer, [i32(0)], width) + more, [i32(0)], width)
                    for (feature, width), buffer in zip(parts, sums, strict=True):
                        store(output, load(buffer, [i32(0)], width), [sequence, head, i32(feature)], width)
                T.buffer_store(
                    log_sum,
                    tirx.Select(seen, highest[0] + tirx.log2(T.Select(seen, total[0], f32(1))), f32(NOTHING)),
                    [sequence, head],
                )

        # Waking the other cores costs more than merging a few sequences.
        with T.If(batch > 4):
            with T.Then(), T.parallel(batch) as sequence:
                merge(sequence)
            with T.Else(), T.serial(batch) as sequence:
                merge(sequence)

    return build("attention_decode_paged", emit)
