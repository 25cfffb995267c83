"""The tensor-core kernel for many tokens: its roof is arithmetic.

x and codes pass through shared memory in stages of 64 k, copied asynchronously; each warp owns a part of the block's
tile of outputs and decodes its codes in registers, once for all its tokens.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, ROWS, TiledConfig
from awq_tvm.schedules.cuda.fragments import BLOCK_K, Fragments
from awq_tvm.schedules.cuda.warp_sum import add_block, clear, held
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_CHUNKS = 8
"""16-byte chunks of one token's 64 k."""

_TOKEN_WORDS = BLOCK_K // 2
"""32-bit words of one token's 64 k."""


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
        lane = thread % 32
        own_tile = thread // 32 % config.row_warps * config.tiles
        own_token = thread // 32 // config.row_warps * (EIGHT * config.eights)
        first_tile, first_token = bx * (config.row_warps * config.tiles), by * config.tokens
        sums = local("sums", 4 * config.eights * config.tiles, "float32")
        clear(sums, 4 * config.eights * config.tiles)
        _add_up(spec, config, arguments, sums, first_tile, first_token, own_tile, own_token, thread, tokens)
        for at, own_row, token_of_warp in held(config.tiles, config.eights, lane):
            token = first_token + own_token + token_of_warp
            row = (first_tile + own_tile) * ROWS + own_row
            with T.If(T.And(token < tokens, row < spec.out_features)), T.Then():
                finish(spec, sums[at], token, row, arguments)


def _add_up(
    spec: MatmulSpec,
    config: TiledConfig,
    arguments: dict[str, Any],
    sums: Any,
    first_tile: Any,
    first_token: Any,
    own_tile: Any,
    own_token: Any,
    thread: Any,
    tokens: Any,
) -> None:
    """Emit the loop over the blocks of k."""
    weights = Fragments(spec, arguments)
    tiles = config.row_warps * config.tiles
    x_at = tiles * weights.tile_words
    stage_words = x_at + config.tokens * _TOKEN_WORDS
    length = config.stages * stage_words
    stages = IRBuilder.name("stages", T.alloc_buffer((length,), "uint32", scope="shared.dyn"))
    lane = thread % 32

    def base_of(block: Any) -> Any:
        return block % config.stages * stage_words

    def x_place(block: Any, token: Any, chunk: Any) -> Any:
        return base_of(block) + x_at + token * _TOKEN_WORDS + _swizzled(token, chunk) * 4

    def copy(block: Any) -> None:
        weights.copy(stages, base_of(block), first_tile, tiles, block, thread, config.threads)
        for first in range(0, config.tokens * _CHUNKS, config.threads):
            token, chunk = (first + thread) // _CHUNKS, thread % _CHUNKS
            # Tokens past the last are read as the last, and not stored.
            source = arguments["x"].ptr_to(
                [T.min(first_token + token, tokens - 1), block * BLOCK_K + chunk * 8]
            )
            ptx.copy_async(stages.ptr_to([x_place(block, token, chunk)]), source)

    for block in range(config.stages - 1):
        if block < weights.blocks:
            copy(block)
        ptx.commit_copies()
    with T.serial(0, weights.blocks) as block:
        ptx.wait_for_copies(config.stages - 2)
        # After it every thread has waited for its copies of this block, and has done with the block before.
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.If(block + (config.stages - 1) < weights.blocks), T.Then():
            copy(block + (config.stages - 1))
        # An empty group keeps the count of those under way.
        ptx.commit_copies()

        def x_of(eight: int, half: int, block: Any = block) -> Any:
            return x_place(block, own_token + EIGHT * eight + lane // 4, half * 4 + lane % 4)

        bases = [base_of(block) + (own_tile + i) * weights.tile_words for i in range(config.tiles)]
        add_block(weights, sums, stages, bases, lane, config.eights, x_of)


def _swizzled(token: Any, chunk: Any) -> Any:
    """Where a token's chunk lies: halves of odd tokens are swapped, so that eight lanes meet all banks."""
    return T.bitwise_xor(chunk, token % 2 * 4)
