"""Splitting of fused q, k, v, and the rotation of q and k by their positions."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules import vector_math
from awq_tvm.schedules.attention.parameters import build, indices, size, tensor
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.attention.tile import columns, i32, keep, load, store

FEW_TOKENS = 4
"""Up to here one core is done sooner than the others wake."""


def split_and_rotate(shape: AttentionShape) -> tirx.PrimFunc:
    """Qkv [n, heads + 2 kv_heads, D] at position_map [n] -> q, k (rotated) and v.

    With h = D / 2 and angle a = position * inverse_frequency[i], for i < h:

        y[i] = x[i] cos(a) - x[i + h] sin(a);  y[i + h] = x[i + h] cos(a) + x[i] sin(a)

    The angles of a token are worked out once, for all heads. The table inverse_frequency [h] float32 comes in
    where the runtime passes its extension factors.
    """
    half = shape.head_dim // 2
    pieces = _halves(half)

    def emit() -> None:
        tokens = size("tokens")
        fused = shape.heads + 2 * shape.kv_heads
        qkv = tensor("qkv", (tokens, fused, shape.head_dim), shape.dtype)
        position_map = indices("position_map", (tokens,))
        q = tensor("q", (tokens, shape.heads, shape.head_dim), shape.dtype)
        k = tensor("k", (tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        v = tensor("v", (tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        frequencies = tensor("inverse_frequency", (half,))

        def one(token: Any) -> None:
            sines = T.alloc_buffer((half,), "float32", scope="global")
            cosines = T.alloc_buffer((half,), "float32", scope="global")
            position = keep(position_map[token].astype("float32"))
            for first, width in pieces:
                angle = keep(T.Broadcast(position, width) * load(frequencies, [i32(first)], width))
                sine, cosine = vector_math.sin_cos(angle, keep)
                store(sines, sine, [i32(first)], width)
                store(cosines, cosine, [i32(first)], width)

            def rotate(target: Any, heads: int, offset: int) -> None:
                with T.serial(heads) as head:
                    for first, width in pieces:
                        low = keep(load(qkv, [token, offset + head, i32(first)], width))
                        high = keep(load(qkv, [token, offset + head, i32(first + half)], width))
                        sine = load(sines, [i32(first)], width)
                        cosine = load(cosines, [i32(first)], width)
                        store(target, low * cosine - high * sine, [token, head, i32(first)], width)
                        store(target, high * cosine + low * sine, [token, head, i32(first + half)], width)

            rotate(q, shape.heads, 0)
            rotate(k, shape.kv_heads, shape.heads)
            with T.serial(shape.kv_heads) as head:
                for first, widths in columns(shape.head_dim, 1):
                    value = load(qkv, [token, shape.heads + shape.kv_heads + head, i32(first)], widths[0])
                    store(v, value, [token, head, i32(first)], widths[0])

        with T.If(tokens > FEW_TOKENS):
            with T.Then(), T.parallel(tokens) as token:
                one(token)
            with T.Else(), T.serial(tokens) as token:
                one(token)

    return build("split_rotary", emit)


def _halves(half: int) -> list[tuple[int, int]]:
    """Cut half a head (a multiple of 4) into vectors: (first feature, width)."""
    pieces, first = [], 0
    for width in (16, 8, 4):
        while half - first >= width:
            pieces.append((first, width))
            first += width
    return pieces
