"""Writing new keys and values into pages on CUDA and Metal, 16 bytes of each a thread.

Pages are [pages, 2, kv_heads, PAGE_SIZE, head_dim], as TVM's own kernels read them.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import vector_length
from awq_tvm.schedules.attention.gpu.lanes import as_words, held, load_vector, registers, store_vector
from awq_tvm.schedules.attention.parameters import build, indices, size, tensor
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import i32

THREADS = 64


def append_on_gpu(shape: AttentionShape) -> tirx.PrimFunc:
    """The PrimFunc that the runtime calls: pages, k and v [tokens, kv_heads, D], position_map [tokens].

    A token goes to page position // PAGE_SIZE, row position % PAGE_SIZE; one at position -1 goes nowhere.
    """
    vectors = shape.head_dim // vector_length(shape)
    of_token = shape.kv_heads * vectors

    def emit() -> None:
        # As the runtime's parameters are named, and as wide as its pages can be.
        tokens, count = size("tokens", "int64"), size("num_pages", "int64")
        pages = tensor("pages", (count, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim), shape.dtype)
        k = tensor("k", (tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        v = tensor("v", (tokens, shape.kv_heads, shape.head_dim), shape.dtype)
        position_map = indices("position_map", (tokens,))
        with (
            T.launch_thread("blockIdx.x", tokens) as token,
            T.launch_thread("blockIdx.y", -(-of_token // THREADS)) as block,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            own = held("own", block * THREADS + thread)
            position = held("position", position_map[token])
            with T.If(T.And(own < of_token, position >= 0)), T.Then():
                page = tirx.shift_right(position, i32(PAGE_SIZE.bit_length() - 1))
                row = tirx.bitwise_and(position, i32(PAGE_SIZE - 1))
                head = held("head", own // vectors)
                first = (page.astype("int64") * (2 * shape.kv_heads) + head) * PAGE_SIZE + row
                at = held("at", first * vectors + own % vectors, "int64")
                half = shape.kv_heads * PAGE_SIZE * vectors
                flat = as_words(pages, count * (2 * half))
                words = registers("words", 8, "uint32")
                for i, source in enumerate((k, v)):
                    load_vector(words, 4 * i, as_words(source, tokens * of_token), token * of_token + own)
                for i in range(2):
                    store_vector(flat, at + i * half, words, 4 * i)

    return build("kv_cache_append", emit, overlaps=True)
