"""The Metal kernel for many tokens: tiles of x and of the decoded weight in threadgroup memory, multiplied 8 x 8.

A threadgroup decodes each code of its tile once, to float16 with its scale, and its SIMD groups multiply 8 x 8
matrices of float16 with float32 sums. Its roof is arithmetic. Tiles lie as matrices of 8 x 8, 128 bytes in a row
each; threads that are neighbours have the eight rows of one, so that loads and 16-byte stores meet every bank once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.metal.codes import PIECE, Codes
from awq_tvm.schedules.metal.config import LANES, SIDE, TileConfig
from awq_tvm.schedules.metal.matrices import clear, load, matrices, multiply, store
from awq_tvm.schedules.spec import MatmulSpec


def tiled_kernel(spec: MatmulSpec, config: TileConfig, arguments: dict[str, Any], tokens: Any) -> None:
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
        # Vectors of 16 bytes, each a row of a matrix: x first, then the weights.
        length = config.threadgroup_bytes // 16
        tiles = IRBuilder.name("tiles", T.alloc_buffer((length,), "uint32x4", scope="shared"))
        down, across = config.own_tokens // SIDE, config.own_rows // SIDE
        sums = matrices("sums", down * across, "float32")
        clear(sums, down * across)
        codes = Codes(spec, arguments)
        with T.serial(0, -(-spec.in_features // config.depth)) as step:
            _bring_x(spec, config, arguments["x"], tiles, by * config.tokens, tokens, step, thread)
            _bring_weights(spec, config, codes, tiles, bx * config.rows, step, thread)
            T.evaluate(T.tvm_storage_sync("shared"))
            _multiply(config, tiles, sums, thread // LANES)
            T.evaluate(T.tvm_storage_sync("shared"))
        _store(spec, config, arguments, tiles, sums, by * config.tokens, bx * config.rows, thread, tokens)


def _vector(config: TileConfig, row: Any, piece: Any) -> Any:
    """Where the 16 bytes of a row (a token, or an output behind the tokens) and eight k of its tile lie."""
    return (row // SIDE * (config.depth // SIDE) + piece) * SIDE + row % SIDE


def _row_and_run(number: Any, runs: int) -> tuple[Any, Any]:
    """Row and run of the thread with a number: eight rows at a run, then the same rows at the next."""
    return number // (SIDE * runs) * SIDE + number % SIDE, number // SIDE % runs


def _bring_x(
    spec: MatmulSpec,
    config: TileConfig,
    x: Any,
    tiles: Any,
    first_token: Any,
    tokens: Any,
    step: Any,
    thread: Any,
) -> None:
    """Emit the copy of the tile of x, zero where K has ended."""
    shape = (tokens, spec.in_features // 2)
    words = IRBuilder.name("x_words", T.decl_buffer(shape, "uint32", data=x.data))
    pieces = config.depth // PIECE
    for first in range(0, config.tokens * pieces, config.threads):
        m, piece = _row_and_run(first + thread, pieces)
        # Tokens past the last are read as the last, and not stored.
        token = T.min(first_token + m, tokens - 1)
        k, place = step * config.depth + piece * PIECE, _vector(config, m, piece)

        def copy(token: Any = token, k: Any = k, place: Any = place) -> None:
            T.buffer_store(tiles, words[token, T.Ramp(k // 2, 1, PIECE // 2)], [place])

        def clear(place: Any = place) -> None:
            T.buffer_store(tiles, T.Broadcast(T.uint32(0), 4), [place])

        _where_k_lasts(spec, config, k, copy, clear)


def _bring_weights(
    spec: MatmulSpec, config: TileConfig, codes: Codes, tiles: Any, first_row: Any, step: Any, thread: Any
) -> None:
    """Emit the decoding of the tile of weights, ``(q - z) * s`` in float16, zero where K has ended."""
    count = config.rows * config.depth // config.threads // PIECE
    runs = config.depth // (count * PIECE)
    n, run = _row_and_run(thread, runs)
    # Rows past the last are read as the last, and not stored.
    row = T.min(first_row + n, codes.rows - 1) if codes.rows % config.rows else first_row + n
    k = step * config.depth + run * (count * PIECE)
    places = [_vector(config, config.tokens + n, run * count + p) for p in range(count)]

    def decode() -> None:
        raw = local("raw", count * codes.words, "uint32")
        codes.load(raw, 0, row, k // PIECE, count)
        group = codes.group(row, k // spec.group_size, 1)
        for p, place in enumerate(places):
            pairs = codes.decode(raw, p * codes.words, group, 0)
            scaled = [T.reinterpret("uint32", pair * T.Broadcast(group.scales[0], 2)) for pair in pairs]
            T.buffer_store(tiles, T.Shuffle(scaled, [0, 1, 2, 3]), [place])

    def clear() -> None:
        for place in places:
            T.buffer_store(tiles, T.Broadcast(T.uint32(0), 4), [place])

    _where_k_lasts(spec, config, k, decode, clear)


def _where_k_lasts(
    spec: MatmulSpec, config: TileConfig, k: Any, inside: Callable[[], None], outside: Callable[[], None]
) -> None:
    """Emit ``inside`` where ``k`` < K and ``outside`` elsewhere; ``inside`` alone where tiles divide K.

    ``k`` starts a run within a chunk, which never straddles K.
    """
    if spec.in_features % config.depth == 0:
        inside()
        return
    with T.If(k < spec.in_features):
        with T.Then():
            inside()
        with T.Else():
            outside()


def _multiply(config: TileConfig, tiles: Any, sums: Any, simdgroup: Any) -> None:
    """Emit ``sums += x @ W.T`` over the tiles."""
    down, across, pieces = config.own_tokens // SIDE, config.own_rows // SIDE, config.depth // SIDE
    halves = _view(config, tiles, "halves", "float16")
    x, weights = matrices("x_matrices", down, "float16"), matrices("weight_matrices", across, "float16")
    own_token = simdgroup // config.row_groups * config.own_tokens
    own_row = config.tokens + simdgroup % config.row_groups * config.own_rows
    with T.serial(0, pieces) as piece:
        # W[n, k] lies row by row as x does: the product wants it the other way round.
        for into, count, row, turned in ((x, down, own_token, False), (weights, across, own_row, True)):
            for i in range(count):
                load(into, i, halves.ptr_to([_vector(config, row + i * SIDE, piece) * SIDE]), SIDE, turned)
        for i in range(down):
            for j in range(across):
                multiply(sums, i * across + j, x, i, weights, j)


def _store(
    spec: MatmulSpec,
    config: TileConfig,
    arguments: dict[str, Any],
    tiles: Any,
    sums: Any,
    first_token: Any,
    first_row: Any,
    thread: Any,
    tokens: Any,
) -> None:
    """Emit the epilogue: each SIMD group puts eight tokens of its sums at a time where the tiles were."""
    floats = _view(config, tiles, "floats", "float32")
    simdgroup, lane = thread // LANES, thread % LANES
    width = config.own_rows
    base = simdgroup * (SIDE * width)
    own_token = first_token + simdgroup // config.row_groups * config.own_tokens
    own_row = first_row + simdgroup % config.row_groups * width
    across = width // SIDE
    together = spec.sums_per_output
    # Outputs of the SIMD group.
    own = width // together
    for i in range(config.own_tokens // SIDE):
        for j in range(across):
            place = floats.ptr_to([base + j * SIDE])
            store(sums, i * across + j, place, width)
        T.evaluate(T.tvm_storage_sync("warp"))
        with T.serial(0, SIDE * own // LANES) as turn:
            number = turn * LANES + lane
            token, row = own_token + i * SIDE + number // own, own_row // together + number % own
            with T.If(T.And(token < tokens, row < spec.y_features)), T.Then():
                totals = [floats[base + (together * number + at)] for at in range(together)]
                finish(spec, totals, token, row, arguments)
        T.evaluate(T.tvm_storage_sync("warp"))


def _view(config: TileConfig, tiles: Any, name: str, dtype: str) -> Any:
    """The tiles as numbers of another type."""
    length = config.threadgroup_bytes * 8 // int(dtype.removeprefix("float"))
    return IRBuilder.name(name, T.decl_buffer((length,), dtype, data=tiles.data, scope="shared"))
