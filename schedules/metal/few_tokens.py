"""The Metal kernel for a few tokens: a SIMD group sums up to four outputs, its roof is the bandwidth of the weights.

A lane takes 32 k at a time, 16 bytes of codes of each output, lanes next to each other runs next to each other, so
that a SIMD group reads 512 bytes in a row of each. The outputs share the lane's reads of x, and of their scales and
zero points, which lie side by side. Products and sums are float32; `simd_sum` adds the lanes' up.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.metal.codes import PIECE, Codes
from awq_tvm.schedules.metal.config import CHUNK, LANES, FewConfig
from awq_tvm.schedules.spec import MatmulSpec

_PIECES = CHUNK // PIECE


def few_tokens_kernel(spec: MatmulSpec, config: FewConfig, arguments: dict[str, Any], tokens: Any) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes; M is at most ``config.tokens``.
        arguments: buffers by name.
        tokens: M.
    """
    rows, count = config.rows, config.rows * config.tokens
    with (
        T.launch_thread("blockIdx.x", -(-spec.out_features // config.block_rows)) as bx,
        T.launch_thread("threadIdx.x", LANES * config.simdgroups) as thread,
    ):
        lane = thread % LANES
        first_row = bx * config.block_rows + thread // LANES * rows
        sums = local("sums", count, "float32")
        for i in range(count):
            T.buffer_store(sums, T.float32(0), [i])
        _add_up(spec, config, arguments, sums, first_row, lane, tokens)
        for i in range(count):
            T.buffer_store(sums, T.call_pure_extern("float32", "simd_sum", sums[i]), [i])
        # Every lane has every sum; each finishes one output, of one or two of them.
        together = spec.sums_per_output
        mine = local("mine", together, "float32")
        for i in range(together):
            T.buffer_store(mine, T.float32(0), [i])
        for i in range(count):
            T.buffer_store(mine, T.Select(lane == i // together, sums[i], mine[i % together]), [i % together])
        token, row = lane // (rows // together), first_row // together + lane % (rows // together)
        with T.If(T.And(T.And(lane < count // together, token < tokens), row < spec.y_features)), T.Then():
            finish(spec, [mine[i] for i in range(together)], token, row, arguments)


def _add_up(
    spec: MatmulSpec,
    config: FewConfig,
    arguments: dict[str, Any],
    sums: Any,
    first_row: Any,
    lane: Any,
    tokens: Any,
) -> None:
    """Emit a lane's loop over its chunks: ``sums[t * rows + r] += s * ((q - z) @ x)``."""
    codes = Codes(spec, arguments)
    rows, words = config.rows, _PIECES * codes.words
    chunks = spec.in_features // CHUNK
    # Rows past the last stored ones are read as the last, and not stored.
    row = T.min(first_row, codes.rows - rows) if codes.rows % config.block_rows else first_row
    with T.serial(0, -(-chunks // LANES)) as step:
        chunk = step * LANES + lane
        with T.If(chunk < chunks), T.Then():
            raw = local("raw", rows * words, "uint32")
            for r in range(rows):
                codes.load(raw, r * words, row + r, chunk * _PIECES, _PIECES)
            group = codes.group(row, chunk // (spec.group_size // CHUNK), rows)
            for p in range(_PIECES):
                weights = []
                for r in range(rows):
                    pairs = codes.decode(raw, r * words + p * codes.words, group, r)
                    weights.append(local("weights", PIECE, "float16"))
                    for i in range(2):
                        T.buffer_store(
                            weights[r],
                            T.Shuffle(pairs[2 * i : 2 * i + 2], [0, 1, 2, 3]),
                            [T.Ramp(4 * i, 1, 4)],
                        )
                for t in range(config.tokens):
                    # Tokens past the last are read as the first, and not stored.
                    token = T.Select(t < tokens, T.int64(t), T.int64(0)) if t else 0
                    x = local("x_piece", PIECE, "float16")
                    for i in range(0, PIECE, 4):
                        value = arguments["x"][token, T.Ramp(chunk * CHUNK + p * PIECE + i, 1, 4)]
                        T.buffer_store(x, value, [T.Ramp(i, 1, 4)])
                    for r in range(rows):
                        products = _dot(weights[r], x, 0) + _dot(weights[r], x, 4)
                        scale = T.Cast("float32", group.scales[r])
                        T.buffer_store(sums, sums[t * rows + r] + scale * products, [t * rows + r])


def _dot(left: Any, right: Any, at: int) -> Any:
    """The float32 dot product of four float16 from ``at`` of each."""
    wide = [T.Cast("float32x4", array[T.Ramp(at, 1, 4)]) for array in (left, right)]
    return T.call_pure_extern("float32", "dot", *wide)
