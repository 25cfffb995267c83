"""The tensor-core kernel for many tokens: its roof is arithmetic.

x and codes pass through shared memory in stages of 64 k, copied asynchronously; each warp owns a part of the block's
tile of outputs and decodes its codes in registers, once for all its tokens. Where tiles are few, blocks divide k too;
where a warp would own too little to be worth the decoding, warps take the blocks of k in turn and add up at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, ROWS, TiledConfig
from awq_tvm.schedules.cuda.first_tokens import FirstTokens
from awq_tvm.schedules.cuda.fragments import BLOCK_K, Fragments
from awq_tvm.schedules.cuda.split_k import Share, Tiles
from awq_tvm.schedules.cuda.tile_outputs import Held, TileOutputs
from awq_tvm.schedules.cuda.warp_sum import Run, add_block, clear
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_CHUNKS = 8
"""16-byte chunks of one token's 64 k."""

_TOKEN_WORDS = BLOCK_K // 2
"""32-bit words of one token's 64 k."""


def tiled_kernel(
    spec: MatmulSpec,
    config: TiledConfig,
    arguments: dict[str, Any],
    tokens: Any,
    tiles: Tiles,
    overlaps: bool = False,
) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        tokens: M.
        tiles: of ``config``, and what of them a block computes.
        overlaps: the launch may begin before the one before has ended; weights come first then.
    """
    with (
        T.launch_thread("blockIdx.x", tiles.division.blocks) as block,
        T.launch_thread("threadIdx.x", config.threads) as thread,
    ):
        if overlaps:
            ptx.let_next_begin()
        lane = thread % 32
        own_tile = thread // 32 % config.row_warps * config.tiles
        own_token = thread // 32 // config.row_warps % config.token_warps * (EIGHT * config.eights)
        own_k = thread // (config.threads // config.k_warps) if config.k_warps > 1 else 0
        own = tiles.share_of(block)
        sums = local("sums", config.sums, "float32")
        clear(sums, config.sums)
        of_warp = (own_tile, own_token, own_k)
        stages = _add_up(spec, config, arguments, sums, own, of_warp, thread, tokens, overlaps)

        row, token = own_tile * ROWS + lane // 4, own_token + lane % 4 * 2
        held = Held(config.tiles, ROWS, config.eights, row, token, own_k)
        TileOutputs(tiles, arguments, tokens, own, thread).store(sums, held, stages)


def _add_up(
    spec: MatmulSpec,
    config: TiledConfig,
    arguments: dict[str, Any],
    sums: Any,
    own: Share,
    of_warp: tuple[Any, Any, Any],
    thread: Any,
    tokens: Any,
    overlaps: bool,
) -> Any:
    """Emit the loop over the blocks of k; returns the shared memory of its stages.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        sums: of the thread.
        own: what the block computes.
        of_warp: where in it the warp's tiles and tokens begin, and which of each few blocks of k are the warp's.
        thread: of the block.
        tokens: M.
        overlaps: whether to wait for the launches before where x is asked for first.
    """
    own_tile, own_token, own_k = of_warp
    count = own.blocks
    weights = Fragments(spec, arguments)
    tiles = config.row_warps * config.tiles
    x_at = tiles * weights.tile_words
    block_words = x_at + config.tokens * _TOKEN_WORDS
    room = config.stages * config.k_warps
    stages = IRBuilder.name("stages", T.alloc_buffer((room * block_words,), "uint32", scope="shared.dyn"))
    lane = thread % 32

    def base_of(number: Any) -> Any:
        return number % room * block_words

    def x_place(number: Any, token: Any, chunk: Any) -> Any:
        return base_of(number) + x_at + token * _TOKEN_WORDS + _swizzled(token, chunk) * 4

    threads = config.threads // config.k_warps
    copier = thread % threads if config.k_warps > 1 else thread

    def pieces_of_x(number: Any) -> Iterator[tuple[Any, Any, Any]]:
        """(where it goes, token, k) of what the thread brings of x for a block."""
        for first in range(0, config.tokens * _CHUNKS, threads):
            token, chunk = (first + copier) // _CHUNKS, copier % _CHUNKS
            k = (own.first_block + number) * BLOCK_K + chunk * 8
            # Tokens past the last are read as the last, and not stored.
            yield x_place(number, token, chunk), T.min(own.first_token + token, tokens - 1), k

    def copy_block(number: Any, with_x: bool) -> None:
        first_tile, block = own.first_row // ROWS, own.first_block + number
        weights.copy(stages, base_of(number), first_tile, tiles, block, copier, threads)
        for place, token, k in pieces_of_x(number) if with_x else ():
            ptx.copy_async(stages.ptr_to([place]), arguments["x"].ptr_to([token, k]))

    def copy(step: Any, *, with_x: bool = True) -> None:
        """Emit the copies of a step, if there is one: of each block of k by the warps that work on it."""
        number = step * config.k_warps + own_k
        if isinstance(number, int) and isinstance(count, int):
            if number < count:
                copy_block(number, with_x)
            return
        with T.If(number < count), T.Then():
            copy_block(number, with_x)

    def work(number: Any, run: Run | None = None) -> None:
        def x_of(eight: int, half: int) -> Any:
            return x_place(number, own_token + EIGHT * eight + lane % 8, half * 4 + lane // 8)

        bases = [base_of(number) + (own_tile + i) * weights.tile_words for i in range(config.tiles)]
        add_block(weights, sums, stages, bases, lane, config.eights, x_of, run)

    for step in range(config.stages - 1):
        copy(step, with_x=not overlaps)
        ptx.commit_copies()
    if overlaps:
        ptx.wait_for_launches()
        pieces = config.tokens * _CHUNKS // threads
        first = FirstTokens(arguments["x"], tokens, stages, (config.stages - 1) * pieces)
        for step in range(config.stages - 1):
            number = step * config.k_warps + own_k
            if isinstance(number, int) and isinstance(count, int) and number >= count:
                break
            first.add(number < count, list(pieces_of_x(number)))
        first.store()

    def advance(step: Any) -> None:
        ptx.wait_for_copies(config.stages - 2)
        # After it every thread has waited for its copies of this step, and has done with the step before.
        T.evaluate(T.tvm_storage_sync("shared"))
        copy(step + (config.stages - 1))
        # An empty group keeps the count of those under way.
        ptx.commit_copies()

    length = config.run_of(spec.group_size)
    if length > 1:
        products = local("run_products", config.sums, "float32")
        with T.serial(0, T.truncdiv(count, length)) as run:
            for number in range(length):
                advance(run * length + number)
                work(run * length + number, Run(products, number == 0, number == length - 1))
        return stages
    steps = T.truncdiv(count + (config.k_warps - 1), config.k_warps) if config.k_warps > 1 else count
    with T.serial(0, steps) as step:
        advance(step)
        if config.k_warps == 1:
            work(step)
        else:
            with T.If(step * config.k_warps + own_k < count), T.Then():
                work(step * config.k_warps + own_k)
    return stages


def _swizzled(token: Any, chunk: Any) -> Any:
    """Where a token's chunk lies: so that one chunk of eight tokens meets all banks, and as `wgmma` has it."""
    return T.bitwise_xor(chunk, token % 8)
