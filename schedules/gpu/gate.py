"""The gate of an MLP on CUDA and Metal: y = f(x[:, :K]) * x[:, K:], 16 bytes of each half a thread.

Computed in float32 and rounded once. The roof is bandwidth, and for one token what a launch takes.
"""

from __future__ import annotations

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
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.schedules.gpu.epilogue import activation
from awq_tvm.schedules.gpu.vectors import vectors_of

THREADS = 128


def gated(function: str, features: int, dtype: str) -> tirx.PrimFunc:
    """The scheduled PrimFunc: x [n, 2 features], y [n, features].

    Args:
        function: one of ``spec.LEGAL_ACTIVATION_FUNCTIONS``.
        features: K; whole vectors of 16 bytes, see ``vectors_of``.
        dtype: of x and y.
    """
    vectors = vectors_of(features, dtype)

    def emit() -> None:
        rows = size("n", "int64")
        x, y = tensor("x", (rows, 2 * features), dtype), tensor("y", (rows, features), dtype)
        count = rows * vectors
        blocks = tirx.floordiv(count + (THREADS - 1), tirx.const(THREADS, "int64"))
        with (
            T.launch_thread("blockIdx.x", blocks) as block,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            flat_x, flat_y = as_words(x, 2 * count), as_words(y, count)
            vector = held("vector", block * THREADS + thread, "int64")
            with T.If(vector < count), T.Then():
                words = registers("words", 8, "uint32")
                row = tirx.floordiv(vector, tirx.const(vectors, "int64"))
                gate = held("gate", vector + row * vectors, "int64")
                load_vector(words, 0, flat_x, gate)
                load_vector(words, 4, flat_x, gate + vectors)
                both = zip(unpack(words, 0, dtype), unpack(words, 4, dtype), strict=True)
                pack(words, 0, [activation(function, value) * up for value, up in both], dtype)
                store_vector(flat_y, vector, words, 0)

    return build("gated", emit, overlaps=True)
