"""The tensor-core kernel for many tokens: its roof is arithmetic.

x passes through shared memory in stages of 64 k, copied asynchronously; codes go from memory to registers one block
of k ahead and are decoded there, each once for all tokens of its warp.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import TiledConfig
from awq_tvm.schedules.cuda.fragments import BLOCK_K, ROWS, Fragments
from awq_tvm.schedules.cuda.warp_sum import EIGHT, add_block, clear
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

CHUNKS = 8
"""16-byte chunks of one token's 64 k."""


def tiled_kernel(spec: MatmulSpec, config: TiledConfig, arguments: dict[str, Any], tokens: Any) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        tokens: M.
    """
    with (
        T.launch_thread("blockIdx.y", (tokens + (config.tokens - 1)) // config.tokens) as by,
        T.launch_thread("blockIdx.x", -(-spec.out_features // config.rows)) as bx,
        T.launch_thread("threadIdx.x", config.threads) as thread,
    ):
        x_tile = IRBuilder.name(
            "x_tile",
            T.alloc_buffer((config.stages, config.tokens, BLOCK_K // 2), "uint32", scope="shared.dyn"),
        )
        lane = thread % 32
        first_tile = (bx * config.row_warps + thread // 32 % config.row_warps) * config.tiles
        own_token = thread // 32 // config.row_warps * (EIGHT * config.eights)
        sums = local("sums", 4 * config.eights * config.tiles, "float32")
        clear(sums, 4 * config.eights * config.tiles)
        _add_up(spec, config, arguments, x_tile, sums, by, first_tile, own_token, thread, tokens)
        for tile in range(config.tiles):
            for eight in range(config.eights):
                for d in range(4):
                    token = by * config.tokens + own_token + EIGHT * eight + lane % 4 * 2 + d % 2
                    row = (first_tile + tile) * ROWS + lane // 4 + d // 2 * 8
                    with T.If(T.And(token < tokens, row < spec.out_features)), T.Then():
                        finish(spec, sums[4 * (tile * config.eights + eight) + d], token, row, arguments)


def _add_up(
    spec: MatmulSpec,
    config: TiledConfig,
    arguments: dict[str, Any],
    x_tile: Any,
    sums: Any,
    by: Any,
    first_tile: Any,
    own_token: Any,
    thread: Any,
    tokens: Any,
) -> None:
    """Emit the loop over the blocks of k."""
    weights = Fragments(spec, arguments)
    lane = thread % 32
    # Tiles past the last are computed as the last, and not stored.
    tiles = [T.min(first_tile + i, weights.tiles - 1) for i in range(config.tiles)]
    words = weights.words * config.tiles

    def load(into: Any, block: Any) -> None:
        for i, tile in enumerate(tiles):
            weights.load(into, weights.words * i, tile, block, lane)

    def copy(block: Any) -> None:
        _copy_x(spec, config, arguments["x"], x_tile, by * config.tokens, tokens, block, thread)

    for ahead in range(config.stages - 1):
        if ahead < weights.blocks:
            copy(ahead)
        ptx.commit_copies()
    raw, following = (local(name, words, "uint32") for name in ("raw", "following"))
    load(raw, 0)
    with T.serial(0, weights.blocks) as block:
        ptx.wait_for_copies(config.stages - 2)
        # After it every thread has waited for its copies of this block, and has done with the block before.
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.If(block + (config.stages - 1) < weights.blocks), T.Then():
            copy(block + (config.stages - 1))
        # An empty group keeps the count of those under way.
        ptx.commit_copies()
        with T.If(block + 1 < weights.blocks), T.Then():
            load(following, block + 1)

        def load_x(into: Any, eight: int, half: int) -> None:
            token = own_token + EIGHT * eight + lane // 4
            first = _chunk(token, half * 4 + lane % 4) * 4
            with T.vectorized(0, 4) as j:
                T.buffer_store(into, x_tile[block % config.stages, token, first + j], [j])

        add_block(weights, sums, raw, 0, tiles, block, lane, config.eights, load_x)
        for i in range(words):
            T.buffer_store(raw, following[i], [i])


def _copy_x(
    spec: MatmulSpec,
    config: TiledConfig,
    x: Any,
    x_tile: Any,
    first_token: Any,
    tokens: Any,
    block: Any,
    thread: Any,
) -> None:
    """Emit the copies of a block of x; tokens past the last are read as the last, and not stored."""
    for first in range(0, config.tokens * CHUNKS, config.threads):
        token, chunk = (first + thread) // CHUNKS, thread % CHUNKS
        source = x.ptr_to([T.min(first_token + token, tokens - 1), block * BLOCK_K + chunk * 8])
        ptx.copy_async(x_tile.ptr_to([block % config.stages, token, _chunk(token, chunk) * 4]), source)


def _chunk(token: Any, chunk: Any) -> Any:
    """Where a token's chunk lies: halves of odd tokens are swapped, so that eight lanes meet all banks."""
    return T.bitwise_xor(chunk, token % 2 * 4)
