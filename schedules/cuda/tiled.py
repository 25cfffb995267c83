"""The tensor-core kernel for many tokens: its roof is arithmetic.

x and codes pass through shared memory in stages of 64 k, copied asynchronously; each warp owns a part of the block's
tile of outputs and decodes its codes in registers, once for all its tokens. Where tiles are few, blocks divide k too;
where a warp would own too little to be worth the decoding, warps take the blocks of k in turn and add up at the end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, ROWS, TiledConfig
from awq_tvm.schedules.cuda.first_tokens import FirstTokens
from awq_tvm.schedules.cuda.fragments import Fragments
from awq_tvm.schedules.cuda.split_k import Share, Tiles
from awq_tvm.schedules.cuda.tile_outputs import Held, TileOutputs
from awq_tvm.schedules.cuda.token_copies import CHUNKS, TOKEN_WORDS, TokenCopies, swizzled
from awq_tvm.schedules.cuda.warp_sum import Run, add_block, clear
from awq_tvm.schedules.cuda.weight_copies import WeightCopies
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec


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
        tiles.clusters(),
        T.launch_thread("threadIdx.x", config.threads) as thread,
        _room_on_an_sm(config),
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


def _room_on_an_sm(config: TiledConfig) -> AbstractContextManager[Any]:
    """What tells nvcc that two blocks are to share an SM, where they just can; for more it leaves room by itself."""
    blocks = config.blocks_by_registers
    return T.attr({"tirx.launch_bounds_min_blocks_per_sm": blocks}) if blocks == 2 else nullcontext()


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
    block_words = x_at + config.tokens * TOKEN_WORDS
    # Of all blocks of a step.
    step_words = config.k_warps * block_words
    length = config.stages * step_words
    stages = IRBuilder.name("stages", T.alloc_buffer((length,), "uint32", scope="shared.dyn"))
    lane = thread % 32
    threads = config.threads // config.k_warps
    copier = thread % threads if config.k_warps > 1 else thread
    own_blocks = (own.first_block + own_k, config.k_warps)
    copies = WeightCopies(weights, (own.first_row // ROWS, tiles), own_blocks, copier, threads)
    x = TokenCopies(arguments["x"], config.tokens, own.first_token, tokens, own_blocks, copier, threads)

    def base_of(stage: Any) -> Any:
        return stage * step_words + own_k * block_words

    def copy_block(base: Any, with_x: bool) -> None:
        copies.copy_next(stages, base)
        if with_x:
            x.copy_next(stages, base + x_at)

    # Of the block of k that a warp has in a step.
    even = weights.blocks % config.k_warps == 0
    steps = _ceiling(count, config.k_warps)

    def is_there(step: Any) -> Any:
        return step < steps if even else step * config.k_warps + own_k < count

    def copy(step: Any, base: Any, *, with_x: bool = True) -> None:
        """Emit the copies of a step, if there is one: of each block of k by the warps that work on it."""
        there = is_there(step)
        if isinstance(there, bool):
            if there:
                copy_block(base, with_x)
            return
        with T.If(there), T.Then():
            copy_block(base, with_x)

    own_tiles = local("own_tiles", 1, "int32")
    T.buffer_store(own_tiles, own_tile * (weights.tile_words // 4), [0])

    def work(base: Any, run: Run | None = None) -> None:
        def x_of(eight: int, half: int) -> Any:
            token, chunk = own_token + EIGHT * eight + lane % 8, half * 4 + lane // 8
            return base + x_at + token * TOKEN_WORDS + swizzled(chunk, lane % 8) * 4

        bases = [base + own_tiles[0] * 4 + i * weights.tile_words for i in range(config.tiles)]
        add_block(weights, sums, stages, bases, lane, config.eights, x_of, run)

    for step in range(config.stages - 1):
        copy(step, base_of(step), with_x=not overlaps)
        ptx.commit_copies()
    if overlaps:
        ptx.wait_for_launches()
        pieces = config.tokens * CHUNKS // threads
        first = FirstTokens(arguments["x"], tokens, stages, (config.stages - 1) * pieces)
        for step in range(config.stages - 1):
            there = is_there(step)
            if there is False:
                break
            first.add(there, x.pieces(base_of(step) + x_at, step))
            x.skip()
        first.store()

    # The stage at hand, and the one that was done with last and is filled next; in units of 16 bytes, so that TVM
    # sees that what is read together is aligned.
    at = local("own_stages", 2, "int32")
    T.buffer_store(at, own_k * (block_words // 4), [0])
    T.buffer_store(at, base_of(config.stages - 1) // 4, [1])

    def advance(step: Any) -> None:
        ptx.wait_for_copies(config.stages - 2)
        # After it every thread has waited for its copies of this step, and has done with the step before.
        T.evaluate(T.tvm_storage_sync("shared"))
        copy(step + (config.stages - 1), at[1] * 4)
        # An empty group keeps the count of those under way.
        ptx.commit_copies()

    def turn() -> None:
        last, one = (config.stages - 1) * step_words // 4, step_words // 4
        T.buffer_store(at, at[0], [1])
        T.buffer_store(at, at[0] + T.Select(at[0] >= last, -last, one), [0])

    # Left to itself nvcc unrolls a few steps that it can count, and then holds 20 registers more.
    run_length = config.run_of(spec.group_size)
    if run_length > 1:
        products = local("run_products", config.sums, "float32")
        with T.serial(0, T.truncdiv(count, run_length), unroll=False) as run:
            for number in range(run_length):
                advance(run * run_length + number)
                work(at[0] * 4, Run(products, number == 0, number == run_length - 1))
                turn()
        return stages
    with T.serial(0, steps, unroll=False) as step:
        advance(step)
        if even:
            work(at[0] * 4)
        else:
            with T.If(is_there(step)), T.Then():
                work(at[0] * 4)
        turn()
    return stages


def _ceiling(count: Any, divisor: int) -> Any:
    """``count`` / ``divisor``, upwards: of a number, or an expression in int32."""
    if divisor == 1 or isinstance(count, int):
        return -(-count // divisor) if isinstance(count, int) else count
    return T.truncdiv(count + (divisor - 1), divisor)
