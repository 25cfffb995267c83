"""Merging of attention over two sets of keys."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules import vector_math
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.attention.tile import columns, i32, keep, load, store

FEW_TOKENS = 8
"""Up to here one core is done sooner than the others wake."""


def merge_in_place(shape: AttentionShape) -> tirx.PrimFunc:
    """(v, s) becomes the attention over both key sets, given that over each: v [n, heads, D], s [n, heads].

    v = (v 2**s + v' 2**s') / (2**s + 2**s'), s = log2(2**s + 2**s'), with s in units of log2.
    """

    def emit() -> None:
        tokens, v, s, other_v, other_s = _parameters(shape)

        def one(token: Any) -> None:
            with T.serial(shape.heads) as head:
                own, other = keep(s[token, head]), keep(other_s[token, head])
                highest = keep(T.max(own, other))
                own_weight = keep(vector_math.exp2(own - highest, keep))
                other_weight = keep(vector_math.exp2(other - highest, keep))
                total = keep(own_weight + other_weight)
                own_share, other_share = keep(own_weight / total), keep(other_weight / total)
                for first, widths in columns(shape.head_dim, 1):
                    place, width = [token, head, i32(first)], widths[0]
                    left = load(v, place, width) * T.Broadcast(own_share, width)
                    right = load(other_v, place, width) * T.Broadcast(other_share, width)
                    store(v, left + right, place, width)
                T.buffer_store(s, highest + tirx.log2(total), [token, head])

        with T.If(tokens > FEW_TOKENS):
            with T.Then(), T.parallel(tokens) as token:
                one(token)
            with T.Else(), T.serial(tokens) as token:
                one(token)

    return build("attention_merge", emit)


def _parameters(shape: AttentionShape) -> tuple[Any, Any, Any, Any, Any]:
    """Declare v, s, v' and s' in order; returns n and these."""
    tokens = size("tokens")
    rows, sums = (tokens, shape.heads, shape.head_dim), (tokens, shape.heads)
    v, s = tensor("v", rows, shape.dtype), tensor("s", sums)
    return tokens, v, s, tensor("other_v", rows, shape.dtype), tensor("other_s", sums)


GPU_THREADS = 32


def merge_in_place_on_gpu(shape: AttentionShape) -> tirx.PrimFunc:
    """The same on CUDA or Metal: a warp a token and head, a thread a feature at a time.

    TVM's own kernel writes s while other threads have still to read it, which only goes well as long as the
    threads of a warp keep step.
    """

    def emit() -> None:
        tokens, v, s, other_v, other_s = _parameters(shape)
        with (
            T.launch_thread("blockIdx.x", tokens) as token,
            T.launch_thread("blockIdx.y", shape.heads) as head,
            T.launch_thread("threadIdx.x", GPU_THREADS) as thread,
        ):
            weights = T.alloc_buffer((2,), "float32", scope="local")
            highest = T.alloc_buffer((1,), "float32", scope="local")
            T.buffer_store(highest, T.max(s[token, head], other_s[token, head]), [0])
            T.buffer_store(weights, tirx.exp2(s[token, head] - highest[0]), [0])
            T.buffer_store(weights, tirx.exp2(other_s[token, head] - highest[0]), [1])
            total = weights[0] + weights[1]
            for first in range(0, shape.head_dim, GPU_THREADS):
                feature = first + thread
                with T.If(feature < shape.head_dim), T.Then():
                    own = v[token, head, feature].astype("float32") * weights[0]
                    other = other_v[token, head, feature].astype("float32") * weights[1]
                    T.buffer_store(v, ((own + other) / total).astype(shape.dtype), [token, head, feature])
            # Every thread has read s.
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.If(thread == 0), T.Then():
                T.buffer_store(s, highest[0] + tirx.log2(total), [token, head])

    return build("attention_merge", emit)
