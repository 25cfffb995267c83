"""The tensor-core kernel for a few tokens: its roof is the bandwidth of the weights.

A block owns some outputs for all tokens; its warps take the blocks of 64 k in turn and add their sums in shared
memory at the end. Each warp has stages of its own there, filled by asynchronous copies some blocks ahead, and waits
for nobody else. Weights are the left operand, so that tokens come eight at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.config import EIGHT, PADDING, FewConfig
from awq_tvm.schedules.cuda.first_tokens import FirstTokens
from awq_tvm.schedules.cuda.fragments import BLOCK_K, HALF_K, Fragments
from awq_tvm.schedules.cuda.warp_sum import add_block, clear, held
from awq_tvm.schedules.cuda.weight_copies import WeightCopies
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

_X_WORDS = 128
"""32-bit words of x of eight tokens and half a block: 16 bytes a lane."""


def few_tokens_kernel(
    spec: MatmulSpec, config: FewConfig, arguments: dict[str, Any], tokens: Any, overlaps: bool = False
) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes; M is at most ``config.most_tokens``.
        arguments: buffers by name.
        tokens: M.
        overlaps: the launch may begin before the one before has ended; weights come first then.
    """
    rows, most = config.rows, config.most_tokens
    threads = 32 * config.warps
    with (
        T.launch_thread("blockIdx.x", -(-spec.out_features // rows)) as bx,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        if overlaps:
            ptx.let_next_begin()
        warp, lane = thread // 32, thread % 32
        sums = local("sums", 4 * config.eights * config.tiles, "float32")
        clear(sums, 4 * config.eights * config.tiles)
        _add_up(spec, config, arguments, sums, bx * config.tiles, warp, lane, tokens, overlaps)
        partial = IRBuilder.name("partial", T.alloc_buffer((config.partial_sums,), "float32", scope="shared"))
        for at, row, token in held(config.tiles, config.eights, lane):
            T.buffer_store(partial, sums[at], [_place(config, warp, token, row)])
        T.evaluate(T.tvm_storage_sync("shared"))
        for first in range(0, rows * most // spec.sums_per_output, threads):
            _store(spec, config, arguments, partial, bx * rows, first + thread, tokens)


def _add_up(
    spec: MatmulSpec,
    config: FewConfig,
    arguments: dict[str, Any],
    sums: Any,
    first_tile: Any,
    warp: Any,
    lane: Any,
    tokens: Any,
    overlaps: bool,
) -> None:
    """Emit a warp's loop over its blocks of k."""
    weights = Fragments(spec, arguments)
    copies = WeightCopies(weights, (first_tile, config.tiles), (warp, config.warps), lane, 32)
    x = arguments["x"]
    x_at = config.tiles * weights.tile_words
    stage_words = x_at + 2 * config.eights * _X_WORDS
    length = config.warps * config.stages * stage_words
    stages = IRBuilder.name("stages", T.alloc_buffer((length,), "uint32", scope="shared.dyn"))
    steps = -(-weights.blocks // config.warps)

    def base_of(step: Any) -> Any:
        return (warp * config.stages + step % config.stages) * stage_words

    def x_place(step: Any, eight: int, half: int) -> Any:
        return base_of(step) + x_at + (2 * eight + half) * _X_WORDS + lane * 4

    def pieces_of_x(step: Any, block: Any) -> Iterator[tuple[Any, Any, Any]]:
        """(where it goes, token, k) of what the lane brings of x for a block."""
        for eight in range(config.eights):
            for half in range(2):
                k = block * BLOCK_K + HALF_K * half + lane // 8 * 8
                yield x_place(step, eight, half), EIGHT * eight + lane % 8, k

    def copy(step: Any, *, with_x: bool = True) -> None:
        """Emit the copies of the warp's block of a step, if there is one."""
        block = step * config.warps + warp
        with T.If(block < weights.blocks), T.Then():
            copies.copy_next(stages, base_of(step))
            for place, token, k in pieces_of_x(step, block) if with_x else ():
                source = x.ptr_to([T.min(token, tokens - 1), k])
                ptx.copy_async_or_zero(stages.ptr_to([place]), source, token < tokens)

    for step in range(config.stages - 1):
        copy(step, with_x=not overlaps)
        ptx.commit_copies()
    if overlaps:
        ptx.wait_for_launches()
        first = FirstTokens(x, tokens, stages, (config.stages - 1) * 2 * config.eights)
        for step in range(config.stages - 1):
            block = step * config.warps + warp
            first.add(block < weights.blocks, list(pieces_of_x(step, block)))
        first.store()
    with T.serial(0, steps) as step:
        ptx.wait_for_copies(config.stages - 2)
        # Scales are copied by other lanes; and all have done with the stage that is filled next.
        ptx.sync_warp()
        copy(step + (config.stages - 1))
        # An empty group keeps the count of those under way.
        ptx.commit_copies()

        with T.If(step * config.warps + warp < weights.blocks), T.Then():
            bases = [base_of(step) + i * weights.tile_words for i in range(config.tiles)]
            add_block(weights, sums, stages, bases, lane, config.eights, functools.partial(x_place, step))


def _store(
    spec: MatmulSpec,
    config: FewConfig,
    arguments: dict[str, Any],
    partial: Any,
    first_row: Any,
    number: Any,
    tokens: Any,
) -> None:
    """Emit the sum over the warps and the epilogue of output ``number`` of the block's."""
    together = spec.sums_per_output
    across = config.rows // together
    row, token = first_row // together + number % across, number // across
    with T.If(T.And(row < spec.y_features, token < tokens)), T.Then():
        total = local("total", together, "float32")
        for i in range(together):
            T.buffer_store(total, T.float32(0), [i])
            for warp in range(config.warps):
                place = _place(config, warp, token, number % across * together + i)
                T.buffer_store(total, total[i] + partial[place], [i])
        finish(spec, [total[i] for i in range(together)], token, row, arguments)


def _place(config: FewConfig, warp: Any, token: Any, row: Any) -> Any:
    """Where a partial sum lies; one dimension, as TVM would cut off the padding of a second."""
    return (warp * config.most_tokens + token) * (config.rows + PADDING) + row
