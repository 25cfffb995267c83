"""The kernel for a few tokens: one warp sums one output, the roof is the bandwidth of the weights.

A lane reads up to 16 bytes of codes at a time, lanes next to each other runs next to each other, so that a
warp reads 512 bytes in a row. Sums stay in float32 registers and meet by shuffles; there is no shared memory.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.gpu.config import WARP_SIZE, GpuMatmulConfig
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import CodeReader, load_activations, local
from awq_tvm.schedules.spec import MatmulSpec

FULL_WARP = 0xFFFFFFFF
CODES_AT_ONCE = 32


def few_tokens_kernel(
    spec: MatmulSpec, config: GpuMatmulConfig, arguments: dict[str, Any], tokens: Any, tokens_per_block: int
) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        tokens: M, at least 1.
        tokens_per_block: tokens that one block computes, 1 for M = 1.
    """
    rows = spec.out_features
    blocks = -(-rows // config.rows_per_block)
    token_blocks = (tokens + (tokens_per_block - 1)) // tokens_per_block
    with (
        T.launch_thread("blockIdx.y", token_blocks) as by,
        T.launch_thread("blockIdx.x", blocks) as bx,
        T.launch_thread("threadIdx.y", config.rows_per_block) as warp,
        T.launch_thread("threadIdx.x", WARP_SIZE) as lane,
    ):
        row = bx * config.rows_per_block + warp
        # Warps past the last row compute it again and do not store: shuffles need every lane.
        safe_row = T.min(row, rows - 1) if rows % config.rows_per_block else row
        sums = local("sums", tokens_per_block, "float32")
        for t in range(tokens_per_block):
            T.buffer_store(sums, T.float32(0), [t])
        _accumulate(spec, arguments, sums, safe_row, by * tokens_per_block, tokens, lane, tokens_per_block)
        for t in range(tokens_per_block):
            for distance in (16, 8, 4, 2, 1):
                other = T.tvm_warp_shuffle_down(T.uint32(FULL_WARP), sums[t], distance, WARP_SIZE, WARP_SIZE)
                T.buffer_store(sums, sums[t] + other, [t])
        for t in range(tokens_per_block):
            token = by * tokens_per_block + t
            with T.If(T.And(T.And(lane == 0, row < rows), token < tokens)), T.Then():
                finish(spec, [sums[t]], token, row, arguments)


def _accumulate(
    spec: MatmulSpec,
    arguments: dict[str, Any],
    sums: Any,
    row: Any,
    first_token: Any,
    tokens: Any,
    lane: Any,
    tokens_per_block: int,
) -> None:
    """Emit the loop over k: ``sums[t] += s * (q - z) * x`` over the lane's runs of codes."""
    reader = CodeReader.widest(spec, CODES_AT_ONCE)
    view = reader.view(arguments["qweight"])
    runs = spec.in_features // reader.codes
    with T.serial(0, -(-runs // WARP_SIZE)) as step:
        run = step * WARP_SIZE + lane
        with T.If(run < runs), T.Then():
            code = reader.load(view, row, run)
            group = run // (spec.group_size // reader.codes)
            scale = local("scale", 1, "float32")
            zero = local("zero", 1, "float32")
            T.buffer_store(scale, T.Cast("float32", arguments["scales"][row, group]), [0])
            T.buffer_store(zero, T.Cast("float32", arguments["zeros"][row, group]), [0])
            weights = local("weights", reader.codes, "float32")
            for i in range(reader.codes):
                T.buffer_store(weights, T.Cast("float32", code(i)) - zero[0], [i])
            partial = local("partial", 1, "float32")
            x_run = local("x_run", reader.codes, spec.dtype)
            for t in range(tokens_per_block):
                # Tokens past the last are read as the last, and not stored.
                token = T.min(first_token + t, tokens - 1) if tokens_per_block > 1 else first_token
                load_activations(
                    arguments["x"], token, run * reader.codes, x_run, 0, reader.codes, reader.codes
                )
                T.buffer_store(partial, T.float32(0), [0])
                for i in range(reader.codes):
                    T.buffer_store(partial, partial[0] + weights[i] * T.Cast("float32", x_run[i]), [0])
                T.buffer_store(sums, sums[t] + scale[0] * partial[0], [t])
