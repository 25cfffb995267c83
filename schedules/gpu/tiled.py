"""The kernel for many tokens: tiles of x and of the decoded weight pass through shared memory.

256 threads, 16 x 16, each own a square of the output tile in float32 registers. Arithmetic bound by the plain
float32 units: matrix units are the work of the schedules that will be asked before this one.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.gpu.config import THREADS_PER_TILE, GpuMatmulConfig
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import CodeReader, load_activations, local
from awq_tvm.schedules.spec import MatmulSpec

SIDE = 16
"""Threads along each side of the output tile."""

K_PER_THREAD = 8
"""k of one row that one thread brings into shared memory; four threads share a row."""

ROWS_AT_ONCE = THREADS_PER_TILE // 4
"""Rows that the block brings in at once."""


def tiled_kernel(spec: MatmulSpec, config: GpuMatmulConfig, arguments: dict[str, Any], tokens: Any) -> None:
    """Emit the kernel into the function being built.

    Args:
        spec: the linear.
        config: sizes.
        arguments: buffers by name.
        tokens: M.
    """
    tile_m, tile_n, tile_k = config.tile_m, config.tile_n, config.tile_k
    own_m, own_n = tile_m // SIDE, tile_n // SIDE
    rows = spec.out_features
    with (
        T.launch_thread("blockIdx.y", (tokens + (tile_m - 1)) // tile_m) as by,
        T.launch_thread("blockIdx.x", -(-rows // tile_n)) as bx,
        T.launch_thread("threadIdx.x", THREADS_PER_TILE) as thread,
    ):
        x_tile = IRBuilder.name("x_tile", T.alloc_buffer((tile_k, tile_m), "float32", scope="shared"))
        w_tile = IRBuilder.name("w_tile", T.alloc_buffer((tile_k, tile_n), "float32", scope="shared"))
        sums = local("sums", own_m * own_n, "float32")
        x_own = local("x_own", own_m, "float32")
        w_own = local("w_own", own_n, "float32")
        for i in range(own_m * own_n):
            T.buffer_store(sums, T.float32(0), [i])
        with T.serial(0, -(-spec.in_features // tile_k)) as step:
            _bring_x(spec, config, arguments["x"], x_tile, by * tile_m, tokens, step, thread)
            _bring_weights(spec, config, arguments, w_tile, bx * tile_n, step, thread)
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.serial(0, tile_k) as k:
                _read_own(x_tile, k, thread // SIDE * own_m, x_own, own_m)
                _read_own(w_tile, k, thread % SIDE * own_n, w_own, own_n)
                for i in range(own_m):
                    for j in range(own_n):
                        at = i * own_n + j
                        T.buffer_store(sums, sums[at] + x_own[i] * w_own[j], [at])
            T.evaluate(T.tvm_storage_sync("shared"))
        for i in range(own_m):
            for j in range(own_n):
                token = by * tile_m + thread // SIDE * own_m + i
                row = bx * tile_n + thread % SIDE * own_n + j
                with T.If(T.And(token < tokens, row < rows)), T.Then():
                    finish(spec, [sums[i * own_n + j]], token, row, arguments)


def _read_own(tile: Any, k: Any, first: Any, into: Any, count: int) -> None:
    """Emit ``into[:] = tile[k, first : first + count]`` as vectors of four."""
    for start in range(0, count, 4):
        with T.vectorized(0, 4) as j:
            T.buffer_store(into, tile[k, first + start + j], [start + j])


def _bring_x(
    spec: MatmulSpec,
    config: GpuMatmulConfig,
    x: Any,
    tile: Any,
    first_token: Any,
    tokens: Any,
    step: Any,
    thread: Any,
) -> None:
    """Emit ``tile[k, m] = x[first_token + m, step * tile_k + k]``, zero where K has ended."""
    aligned = math.gcd(K_PER_THREAD, spec.in_features)
    for part in range(config.tile_m // ROWS_AT_ONCE):
        m = thread // 4 + part * ROWS_AT_ONCE
        # Tokens past the last are read as the last, and not stored.
        token = T.min(first_token + m, tokens - 1)
        run = local("x_run", K_PER_THREAD, spec.dtype)
        for start in range(0, K_PER_THREAD, aligned):
            k = thread % 4 * K_PER_THREAD + start
            first = step * config.tile_k + k
            _where_k_lasts(
                spec,
                config,
                first,
                lambda first=first, start=start, run=run, token=token: load_activations(
                    x, token, first, run, start, aligned, aligned
                ),
                lambda start=start, run=run: [
                    T.buffer_store(run, T.Cast(spec.dtype, T.float32(0)), [start + i]) for i in range(aligned)
                ],
            )
            for i in range(aligned):
                T.buffer_store(tile, T.Cast("float32", run[start + i]), [k + i, m])


def _bring_weights(
    spec: MatmulSpec,
    config: GpuMatmulConfig,
    arguments: dict[str, Any],
    tile: Any,
    first_row: Any,
    step: Any,
    thread: Any,
) -> None:
    """Emit ``tile[k, n] = (q - z) * s`` for the rows from ``first_row``, zero where K has ended."""
    reader = CodeReader.widest(spec, K_PER_THREAD)
    view = reader.view(arguments["qweight"])
    for part in range(config.tile_n // ROWS_AT_ONCE):
        n = thread // 4 + part * ROWS_AT_ONCE
        # Rows past the last are read as the last, and not stored.
        row = T.min(first_row + n, spec.out_features - 1)
        for start in range(0, K_PER_THREAD, reader.codes):
            k = thread % 4 * K_PER_THREAD + start
            first = step * config.tile_k + k

            def decode(first: Any = first, k: Any = k, n: Any = n, row: Any = row) -> None:
                code = reader.load(view, row, first // reader.codes)
                group = first // spec.group_size
                scale = local("scale", 1, "float32")
                zero = local("zero", 1, "float32")
                T.buffer_store(scale, T.Cast("float32", arguments["scales"][row, group]), [0])
                T.buffer_store(zero, T.Cast("float32", arguments["zeros"][row, group]), [0])
                for i in range(reader.codes):
                    weight = (T.Cast("float32", code(i)) - zero[0]) * scale[0]
                    T.buffer_store(tile, weight, [k + i, n])

            def clear(k: Any = k, n: Any = n) -> None:
                for i in range(reader.codes):
                    T.buffer_store(tile, T.float32(0), [k + i, n])

            _where_k_lasts(spec, config, first, decode, clear)


def _where_k_lasts(spec: MatmulSpec, config: GpuMatmulConfig, first: Any, inside: Any, outside: Any) -> None:
    """Emit ``inside`` where ``first`` < K and ``outside`` elsewhere; ``inside`` alone where tiles divide K.

    ``first`` starts a run that never straddles K, so one comparison stands for the whole run.
    """
    if spec.in_features % config.tile_k == 0:
        inside()
        return
    with T.If(first < spec.in_features):
        with T.Then():
            inside()
        with T.Else():
            outside()
