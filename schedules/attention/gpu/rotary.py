"""Splitting of fused q, k, v and rotation of q and k on CUDA and Metal: four pairs of features a thread.

The op is that of ``attention.rotary``. One token is some hundred threads' work, and all else waits for it, so the
roof is how long one thread takes: a wider vector would halve the threads and double the sines that each works out.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import (
    as_words,
    held,
    load_vector,
    pack,
    registers,
    store_vector,
    unpack,
)
from awq_tvm.schedules.attention.parameters import build, indices, size, tensor
from awq_tvm.schedules.attention.shape import AttentionShape

THREADS = 64
"""Of a block: few, so that one token's pairs are spread over several SMs."""
FEATURES = 4
"""Of a thread, in each half of a head: head_dim is a multiple of 8."""


def split_and_rotate_on_gpu(shape: AttentionShape) -> tirx.PrimFunc:
    """See ``attention.rotary.split_and_rotate``, whose parameters it has."""
    half, dtype = shape.head_dim // 2, shape.dtype
    vectors, length = half // FEATURES, FEATURES if dtype == "float32" else FEATURES // 2
    rotated = shape.heads + shape.kv_heads
    fused = rotated + shape.kv_heads

    def emit() -> None:
        tokens = size("tokens")
        qkv = tensor("qkv", (tokens, fused, shape.head_dim), dtype)
        position_map = indices("position_map", (tokens,))
        parts = [
            tensor(name, (tokens, heads, shape.head_dim), dtype)
            for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads))
        ]
        frequencies = tensor("inverse_frequency", (half,))
        with (
            T.launch_thread("blockIdx.x", tokens) as token,
            T.launch_thread("blockIdx.y", -(-fused * vectors // THREADS)) as block,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            work = held("work", block * THREADS + thread)
            with T.If(work < fused * vectors), T.Then():
                head, vector = held("head", work // vectors), held("vector", work % vectors)
                low, high = registers("low", length, "uint32"), registers("high", length, "uint32")
                flat = as_words(qkv, tokens * (fused * shape.head_dim * length // FEATURES // 4))
                at = held("at", (token * fused + head) * (2 * vectors) + vector)
                load_vector(low, 0, flat, at, length)
                load_vector(high, 0, flat, at + vectors, length)
                with T.If(head < rotated), T.Then():
                    position = held("position", position_map[token].astype("float32"), "float32")
                    own = registers("frequencies", FEATURES, "uint32")
                    load_vector(own, 0, as_words(frequencies, half // FEATURES), vector)
                    angles = [position * frequency for frequency in unpack(own, 0, "float32")]
                    _rotate(low, high, angles, dtype)
                _store(parts, token, head, vector, (low, high), length)

    return build("split_rotary", emit, overlaps=True)


def _rotate(low: Any, high: Any, angles: list[Any], dtype: str) -> None:
    """Emit the rotation of pairs of features where they are, in words of registers."""
    length = int(low.shape[0])
    # Both are read for both: what they are as float32 is kept.
    left, right = (
        [held("feature", value, "float32") for value in unpack(words, 0, dtype, length)]
        for words in (low, high)
    )
    first, second = [], []
    for x, y, angle in zip(left, right, angles, strict=True):
        own = held("angle", angle, "float32")
        cosine, sine = held("cosine", tirx.cos(own), "float32"), held("sine", tirx.sin(own), "float32")
        first.append(x * cosine - y * sine)
        second.append(y * cosine + x * sine)
    pack(low, 0, first, dtype)
    pack(high, 0, second, dtype)


def _store(parts: list[Any], token: Any, head: Any, vector: Any, words: tuple[Any, Any], length: int) -> None:
    """Emit the stores to the one of q, k and v that has the head, all of whose heads come in that order."""
    part, *rest = parts
    tokens, heads, head_dim = part.shape
    vectors = int(head_dim) // 2 // FEATURES

    def store() -> None:
        flat = as_words(part, tokens * (int(heads) * vectors * 2 * length // 4))
        at = held("to", (token * heads + head) * (2 * vectors) + vector)
        store_vector(flat, at, words[0], 0, length)
        store_vector(flat, at + vectors, words[1], 0, length)

    if not rest:
        store()
        return
    with T.If(head < heads):
        with T.Then():
            store()
        with T.Else():
            _store(rest, token, held("later", head - heads), vector, words, length)
