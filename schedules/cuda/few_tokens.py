"""The tensor-core kernel for a few tokens: its roof is the bandwidth of the weights.

A block owns some outputs for all tokens; its warps take the blocks of 64 k in turn and add their sums in shared
memory. Codes go from memory to registers, several loads of 512 bytes a warp under way at a time, and are the left
operand, so that tokens come eight at a time; x is read through the first-level cache.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.config import FewConfig
from awq_tvm.schedules.cuda.fragments import HALF_K, ROWS, Fragments
from awq_tvm.schedules.cuda.warp_sum import EIGHT, add_block, clear
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

PADDING = 4
"""Floats between rows of partial sums, so that the lanes of a store meet different banks."""


def few_tokens_kernel(spec: MatmulSpec, config: FewConfig, arguments: dict[str, Any], tokens: Any) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes; M is at most ``config.most_tokens``.
        arguments: buffers by name.
        tokens: M.
    """
    threads = 32 * config.warps
    rows, most = ROWS * config.tiles, EIGHT * config.eights
    with (
        T.launch_thread("blockIdx.x", -(-spec.out_features // rows)) as bx,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        partial = IRBuilder.name(
            "partial", T.alloc_buffer((config.warps * most * (rows + PADDING),), "float32", scope="shared")
        )
        warp, lane = thread // 32, thread % 32
        sums = local("sums", 4 * config.eights * config.tiles, "float32")
        clear(sums, 4 * config.eights * config.tiles)
        _add_up(spec, config, arguments, sums, bx, warp, lane, tokens)
        for tile in range(config.tiles):
            for eight in range(config.eights):
                for d in range(4):
                    token = EIGHT * eight + lane % 4 * 2 + d % 2
                    row = ROWS * tile + lane // 4 + d // 2 * 8
                    at = 4 * (tile * config.eights + eight) + d
                    T.buffer_store(partial, sums[at], [_place(config, warp, token, row)])
        T.evaluate(T.tvm_storage_sync("shared"))
        for first in range(0, rows * most, threads):
            _store(spec, config, arguments, partial, bx * rows, first + thread, tokens)


def _add_up(
    spec: MatmulSpec,
    config: FewConfig,
    arguments: dict[str, Any],
    sums: Any,
    bx: Any,
    warp: Any,
    lane: Any,
    tokens: Any,
) -> None:
    """Emit a warp's loop over its blocks of k, the next codes under way while these are used."""
    weights = Fragments(spec, arguments)
    x = IRBuilder.name(
        "x_pairs", T.decl_buffer((tokens, spec.in_features // 2), "uint32", data=arguments["x"].data)
    )
    # Tiles past the last are computed as the last, tokens past the last as the last, and not stored.
    tiles = [
        T.min(bx * config.tiles + i, weights.tiles - 1)
        if weights.tiles % config.tiles
        else bx * config.tiles + i
        for i in range(config.tiles)
    ]
    own_blocks = -(-weights.blocks // config.warps)
    at_once = min(config.in_flight // config.tiles, own_blocks)
    steps = -(-own_blocks // at_once)
    words = weights.words * config.tiles

    def block_of(step: Any, i: int) -> Any:
        return (step * at_once + i) * config.warps + warp

    def inside(step: Any, i: int, emit: Any) -> None:
        """Emit where the block exists: everywhere, if warps and steps divide the blocks."""
        if weights.blocks % (at_once * config.warps) == 0:
            emit()
        else:
            with T.If(block_of(step, i) < weights.blocks), T.Then():
                emit()

    def load(into: Any, step: Any) -> None:
        for i in range(at_once):

            def emit(i: int = i) -> None:
                for t, tile in enumerate(tiles):
                    weights.load(into, words * i + weights.words * t, tile, block_of(step, i), lane)

            inside(step, i, emit)

    def add(raw: Any, step: Any) -> None:
        for i in range(at_once):

            def emit(i: int = i) -> None:
                def load_x(into: Any, eight: int, half: int) -> None:
                    token = T.min(EIGHT * eight + lane // 4, tokens - 1)
                    first = block_of(step, i) * 32 + HALF_K // 2 * half + lane % 4 * 4
                    with T.vectorized(0, 4) as j:
                        T.buffer_store(into, x[token, first + j], [j])

                add_block(
                    weights, sums, raw, words * i, tiles, block_of(step, i), lane, config.eights, load_x
                )

            inside(step, i, emit)

    raw = local("raw", words * at_once, "uint32")
    load(raw, 0)
    if steps > 1:
        following = local("following", words * at_once, "uint32")
        with T.serial(0, steps - 1) as step:
            load(following, step + 1)
            add(raw, step)
            for i in range(words * at_once):
                T.buffer_store(raw, following[i], [i])
    add(raw, steps - 1)


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
    rows = ROWS * config.tiles
    row, token = first_row + number % rows, number // rows
    with T.If(T.And(row < spec.out_features, token < tokens)), T.Then():
        total = local("total", 1, "float32")
        T.buffer_store(total, T.float32(0), [0])
        for warp in range(config.warps):
            T.buffer_store(total, total[0] + partial[_place(config, warp, token, number % rows)], [0])
        finish(spec, total[0], token, row, arguments)


def _place(config: FewConfig, warp: Any, token: Any, row: Any) -> Any:
    """Where a partial sum lies; one dimension, as TVM would cut off the padding of a second."""
    return (warp * (EIGHT * config.eights) + token) * (ROWS * config.tiles + PADDING) + row
