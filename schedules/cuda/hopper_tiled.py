"""Hopper's kernel for many tokens: its roof is the arithmetic of the tensor cores.

Weights are the left operand of `wgmma`, decoded by each thread into the registers that it multiplies, and are never
in shared memory decoded; x is the right operand, and comes from shared memory by a descriptor. A product of 64
outputs, 16 k and all tokens of the block goes on while its warps decode what the next one takes: as many are under
way as a step has. Scales are multiplied into the weights, rounded to the dtype of x: to scale sums instead, every
warp would wait for its products at the end of each group. (Weights in registers for `wgmma` are Machete's idea.)
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx, warpgroup
from awq_tvm.schedules.cuda.config import EIGHT
from awq_tvm.schedules.cuda.fragments import BLOCK_K, Fragments
from awq_tvm.schedules.cuda.hopper_config import ROWS, WarpgroupConfig
from awq_tvm.schedules.cuda.split_k import Share, Tiles
from awq_tvm.schedules.cuda.tile_outputs import Held, TileOutputs
from awq_tvm.schedules.cuda.token_copies import TOKEN_WORDS, TokenCopies
from awq_tvm.schedules.cuda.warp_sum import clear
from awq_tvm.schedules.cuda.weight_copies import WeightCopies
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_PIECES = BLOCK_K // 16
"""Products of a tile and a block of k."""

_MOST_STEPS = 1 << 20
"""A power of two that no number of blocks of k reaches."""

_IN_USE = 2
"""Stages that may be read while the next are on their way: of the step at hand and of the one before."""


def hopper_kernel(
    spec: MatmulSpec, config: WarpgroupConfig, arguments: dict[str, Any], tokens: Any, tiles: Tiles
) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        tokens: M.
        tiles: of ``config``, and what of them a block computes.
    """
    with (
        T.launch_thread("blockIdx.x", tiles.division.blocks) as block,
        tiles.clusters(),
        T.launch_thread("threadIdx.x", config.threads) as thread,
    ):
        own = tiles.share_of(block)
        sums = local("sums", config.sums, "float32")
        clear(sums, config.sums)
        stages = _add_up(spec, config, arguments, sums, own, thread, tokens)

        lane, warp = thread % 32, thread // 32
        row = warp // 4 * (ROWS * config.tiles) + warp % 4 * 16 + lane // 4
        held = Held(config.tiles, ROWS, config.tokens // EIGHT, row, lane % 4 * 2, 0)
        TileOutputs(tiles, arguments, tokens, own, thread).store(sums, held, stages)


def _add_up(
    spec: MatmulSpec,
    config: WarpgroupConfig,
    arguments: dict[str, Any],
    sums: Any,
    own: Share,
    thread: Any,
    tokens: Any,
) -> Any:
    """Emit the loop over the blocks of k; returns the shared memory of its stages.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        sums: of the thread.
        own: what the block computes.
        thread: of the block.
        tokens: M.
    """
    weights, count = Fragments(spec, arguments), own.blocks
    tiles = config.rows // 16
    x_words = config.tokens * TOKEN_WORDS
    codes_at, stage_words = config.stages * x_words, tiles * weights.tile_words
    pattern_words = warpgroup.PATTERN_BYTES // 4
    length = codes_at + config.stages * stage_words + pattern_words
    stages = IRBuilder.name("stages", T.alloc_buffer((length,), "uint32", scope="shared.dyn"))
    start = local("start", 1, "int32")
    address = local("address", 1, "uint32")
    T.buffer_store(address, T.cuda.cvta_generic_to_shared(stages.ptr_to([0])), [0])
    words_before = T.Cast("int32", address[0] >> T.uint32(2)) % pattern_words
    T.buffer_store(start, (pattern_words - words_before) % pattern_words, [0])
    x_address = address[0] + T.Cast("uint32", start[0] * 4)

    own_blocks, threads = (own.first_block, 1), config.threads
    copies = WeightCopies(weights, (own.first_row // 16, tiles), own_blocks, thread, threads)
    x_copies = TokenCopies(
        arguments["x"], config.tokens, own.first_token, tokens, own_blocks, thread, threads
    )

    def x_at(number: Any) -> Any:
        return number % config.stages * x_words

    def codes_of(number: Any) -> Any:
        return start[0] + codes_at + number % config.stages * stage_words

    def copy(number: Any) -> None:
        """Emit the copies of a block of k, if there is one."""
        with T.If(number < count), T.Then():
            copies.copy_next(stages, codes_of(number))
            x_copies.copy_next(stages, start[0] + x_at(number))

    ahead = config.stages - _IN_USE
    for number in range(ahead):
        copy(number)
        ptx.commit_copies()
    # Any part has a block, and the compiler is to see that: were there a path around the products, on which their
    # sums are still zeros, the assembler would wait for each of them.
    steps = count if isinstance(count, int) else T.bitwise_and(count - 1, _MOST_STEPS - 1) + 1
    with T.serial(0, steps) as step:
        ptx.wait_for_copies(ahead - 1)
        warpgroup.fence_shared()
        # After it each thread sees all copies of this step, and all have waited for products two steps back.
        T.evaluate(T.tvm_storage_sync("shared"))
        copy(step + ahead)
        # An empty group keeps the count of those under way.
        ptx.commit_copies()
        x = local("x", 1, "uint64")
        T.buffer_store(x, warpgroup.descriptor(x_address + T.Cast("uint32", x_at(step) * 4)), [0])
        _multiply(config, weights, sums, stages, codes_of(step), x, thread)
    warpgroup.wait(0)
    return stages


def _multiply(
    config: WarpgroupConfig, weights: Fragments, sums: Any, shared: Any, codes: Any, x: Any, thread: Any
) -> None:
    """Emit the products of one block of k.

    Args:
        config: sizes.
        weights: of the linear.
        sums: of the thread.
        shared: where ``WeightCopies.copy_next`` has put the tiles of the block.
        codes: where they begin.
        x: the descriptor of the block's tokens, in a register.
        thread: of the block.
    """
    lane, warp = thread % 32, thread // 32
    own_tile = warp // 4 * (4 * config.tiles) + warp % 4
    bases = [codes + (own_tile + 4 * tile) * weights.tile_words for tile in range(config.tiles)]
    raw = [weights.read_codes(shared, base, lane) for base in bases]
    held = config.tokens // 2
    # Each product has registers of its own in a step: they are free when as many have followed it.
    pending = min(_PIECES * config.tiles - 1, warpgroup.MOST_PENDING)
    for part in range(weights.sums_per_block):
        groups = [weights.read_group_to_scale(shared, base, part, lane) for base in bases]
        pieces = _PIECES // weights.sums_per_block
        for piece in range(part * pieces, (part + 1) * pieces):
            for tile, (scales, zeros) in enumerate(groups):
                w = local("w", 4, "uint32")
                warpgroup.wait(pending)
                weights.decode_sixteen(w, 0, raw[tile], piece, zeros, scales)
                warpgroup.fence_registers()
                own = [sums[tile * held + i] for i in range(held)]
                right = x[0] + T.uint64(warpgroup.STEP_16 * piece)
                warpgroup.multiply(own, [w[r] for r in range(4)], right, weights.spec.dtype)
                warpgroup.commit()
