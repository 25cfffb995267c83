"""The tensor-core kernel for many tokens: its roof is arithmetic.

x and codes pass through shared memory in stages of 64 k, copied asynchronously; each warp owns a part of the block's
tile of outputs and decodes its codes in registers, once for all its tokens. Where tiles are few, blocks divide k too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, ROWS, TiledConfig
from awq_tvm.schedules.cuda.fragments import BLOCK_K, Fragments
from awq_tvm.schedules.cuda.split_k import Parts, columns
from awq_tvm.schedules.cuda.warp_sum import add_block, clear, held
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_CHUNKS = 8
"""16-byte chunks of one token's 64 k."""

_TOKEN_WORDS = BLOCK_K // 2
"""32-bit words of one token's 64 k."""


def tiled_kernel(
    spec: MatmulSpec, config: TiledConfig, arguments: dict[str, Any], tokens: Any, parts: Parts | None = None
) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        tokens: M.
        parts: of k, where blocks divide it; then the outputs are finished here only if there is one part.
    """
    with (
        T.launch_thread("blockIdx.z", parts.count if parts else 1) as part,
        T.launch_thread("blockIdx.y", (tokens + (config.tokens - 1)) // config.tokens) as by,
        T.launch_thread("blockIdx.x", columns(spec, config)) as bx,
        T.launch_thread("threadIdx.x", config.threads) as thread,
    ):
        lane = thread % 32
        own_tile = thread // 32 % config.row_warps * config.tiles
        own_token = thread // 32 // config.row_warps * (EIGHT * config.eights)
        first_tile, first_token = bx * (config.row_warps * config.tiles), by * config.tokens
        blocks = spec.in_features // BLOCK_K
        own_blocks = parts.bounds(part, blocks) if parts else (0, blocks)
        sums = local("sums", 4 * config.eights * config.tiles, "float32")
        clear(sums, 4 * config.eights * config.tiles)
        own = (own_tile, own_token, own_blocks)
        _add_up(spec, config, arguments, sums, first_tile, first_token, own, thread, tokens)

        # In registers once, or the compiler works them out again for every store.
        corner = local("corner", 3, "int32")
        T.buffer_store(corner, T.Cast("int32", first_token + own_token + lane % 4 * 2), [0])
        T.buffer_store(corner, (first_tile + own_tile) * ROWS + lane // 4, [1])

        def store(into: Callable[[Any, int, int], None]) -> None:
            for at, row, token in held(config.tiles, config.eights, 0):
                inside = T.And(corner[0] + token < tokens, corner[1] + row < spec.out_features)
                with T.If(inside), T.Then():
                    into(sums[at], token, row)

        def store_output(total: Any, token: int, row: int) -> None:
            finish(spec, total, corner[0] + token, corner[1] + row, arguments)

        if parts is None:
            store(store_output)
            return

        def store_part(total: Any, token: int, row: int) -> None:
            T.buffer_store(parts.sums, total, [corner[2] + (token * spec.out_features + row)])

        def store_parts() -> None:
            T.buffer_store(corner, parts.place(part, corner[0], corner[1]), [2])
            store(store_part)

        if isinstance(parts.count, int):
            store_parts()
            return
        with T.If(parts.count == 1):
            with T.Then():
                store(store_output)
            with T.Else():
                store_parts()


def _add_up(
    spec: MatmulSpec,
    config: TiledConfig,
    arguments: dict[str, Any],
    sums: Any,
    first_tile: Any,
    first_token: Any,
    own: tuple[Any, Any, tuple[Any, Any]],
    thread: Any,
    tokens: Any,
) -> None:
    """Emit the loop over the blocks of k.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        sums: of the thread.
        first_tile: of the block.
        first_token: of the block.
        own: where in it the warp's tiles and tokens begin; and of the block the first block of k, and how many.
        thread: of the block.
        tokens: M.
    """
    own_tile, own_token, (first_block, steps) = own
    weights = Fragments(spec, arguments)
    tiles = config.row_warps * config.tiles
    x_at = tiles * weights.tile_words
    stage_words = x_at + config.tokens * _TOKEN_WORDS
    length = config.stages * stage_words
    stages = IRBuilder.name("stages", T.alloc_buffer((length,), "uint32", scope="shared.dyn"))
    lane = thread % 32

    def base_of(step: Any) -> Any:
        return step % config.stages * stage_words

    def x_place(step: Any, token: Any, chunk: Any) -> Any:
        return base_of(step) + x_at + token * _TOKEN_WORDS + _swizzled(token, chunk) * 4

    def copy(step: Any) -> None:
        block = first_block + step
        weights.copy(stages, base_of(step), first_tile, tiles, block, thread, config.threads)
        for first in range(0, config.tokens * _CHUNKS, config.threads):
            token, chunk = (first + thread) // _CHUNKS, thread % _CHUNKS
            # Tokens past the last are read as the last, and not stored.
            source = arguments["x"].ptr_to(
                [T.min(first_token + token, tokens - 1), block * BLOCK_K + chunk * 8]
            )
            ptx.copy_async(stages.ptr_to([x_place(step, token, chunk)]), source)

    for step in range(config.stages - 1):
        if not isinstance(steps, int):
            with T.If(step < steps), T.Then():
                copy(step)
        elif step < steps:
            copy(step)
        ptx.commit_copies()
    with T.serial(0, steps) as step:
        ptx.wait_for_copies(config.stages - 2)
        # After it every thread has waited for its copies of this block, and has done with the block before.
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.If(step + (config.stages - 1) < steps), T.Then():
            copy(step + (config.stages - 1))
        # An empty group keeps the count of those under way.
        ptx.commit_copies()

        def x_of(eight: int, half: int, step: Any = step) -> Any:
            return x_place(step, own_token + EIGHT * eight + lane // 4, half * 4 + lane % 4)

        bases = [base_of(step) + (own_tile + i) * weights.tile_words for i in range(config.tiles)]
        add_block(weights, sums, stages, bases, lane, config.eights, x_of)


def _swizzled(token: Any, chunk: Any) -> Any:
    """Where a token's chunk lies: halves of odd tokens are swapped, so that eight lanes meet all banks."""
    return T.bitwise_xor(chunk, token % 2 * 4)
