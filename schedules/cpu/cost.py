"""How long a CPU kernel takes, by counting its instructions: what orders candidates before any is measured.

A core is taken to start two vector instructions and two loads a cycle, of 64 bytes on AVX-512, 32 on AVX2, 16 on
NEON; a loop takes the longest of its loads, its operations and the chain through one of its sums. Sums that find no
register cost a load and a store at each use. The counts are those of the inner loops as they are written in
``dot_matmul``, ``float_matmul`` and ``dense``; only ratios between candidates of one kernel are meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.dot import ONE_INSTRUCTION
from awq_tvm.schedules.cpu.plane_codes import planes

if TYPE_CHECKING:
    from awq_tvm.schedules.cpu.dense import DenseConfig
    from awq_tvm.schedules.cpu.dot_matmul import Tile
    from awq_tvm.schedules.cpu.float_matmul import FloatConfig
    from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
    from awq_tvm.targets import Target

PER_CYCLE = 2
DOT_LATENCY, FMA_LATENCY = 5, 4
TILE_OVERHEAD = 30
"""Cycles around a tile: the loop, the epilogue's first steps."""
BEST_AHEAD = 8 * 2**10
"""Bytes of codes; asking twice as far ahead, or half as far, is taken to cost one part in a hundred."""


@dataclass(frozen=True)
class Loop:
    """One round of a loop, in vectors of 64 bytes unless said otherwise.

    Args:
        loads: vectors loaded.
        broadcasts: scalars loaded into all lanes; one instruction whatever the vectors' width.
        operations: vector operations.
        chain: cycles that a round adds to the longest chain of dependent operations.
        live: vectors that must stay in registers.
    """

    loads: float
    broadcasts: float
    operations: float
    chain: float = 0.0
    live: float = 0.0

    def cycles(self, target: Target, registers: int) -> float:
        """Of one round.

        Args:
            target: says how wide its vectors are.
            registers: that it has, counted in vectors of 64 bytes.
        """
        parts = instructions_a_vector(target)
        spilled = max(0.0, self.live - registers)
        loads = (self.loads + 2 * spilled) * parts + self.broadcasts
        # Sums that come from memory and go there are late, too: an operation's time for each.
        return max(loads / PER_CYCLE, (self.operations + spilled) * parts / PER_CYCLE, self.chain)


def instructions_a_vector(target: Target) -> int:
    """Of 64 bytes."""
    if target.family == "arm":
        return 4
    return 1 if "avx512f" in target.features else 2


def _dot_instructions(spec: MatmulSpec, target: Target) -> int:
    if target.features & ONE_INSTRUCTION:
        return 1
    return 3 if spec.bits <= 4 else 4  # x takes the signs of codes of 8 bits first


def _decoding(spec: MatmulSpec, target: Target) -> tuple[float, float]:
    """Vectors loaded and operations for the codes of a block, for 8 k of up to 4 bits and 4 k of more."""
    in_planes = planes(spec, target)
    if in_planes:
        return in_planes / 4, 3.5 if in_planes == 2 else 7.25
    if spec.bits <= 4:
        return 1, 2 if target.family == "arm" else 3
    return 1, 0 if target.features & ONE_INSTRUCTION else 1


def dot_cycles(
    spec: MatmulSpec,
    target: Target,
    tile: Tile,
    *,
    digits: int,
    registers: int,
    rows: int,
    matrix: bool,
    decoded: bool,
) -> float:
    """The integer kernel with this tile, M = ``rows``, without what all tiles share.

    Args:
        spec: the linear.
        target: the CPU.
        tile: rows and blocks in registers.
        digits: digits of an activation.
        registers: vectors of 64 bytes.
        rows: M.
        matrix: whether matrix instructions multiply.
        decoded: whether codes are decoded once for all tiles of rows.
    """
    read, decoding = _decoding(spec, target)
    halves = 2 if spec.bits <= 4 else 1
    chunks = ceil(spec.out_features / 16) * spec.in_features // (4 * halves)
    before = (read + halves + decoding) / PER_CYCLE * instructions_a_vector(target) if decoded else 0.0
    sizes = [(tile, ceil(rows / tile.rows))] if matrix else tile.cover(rows)
    tiles = sum(
        count
        * _tile_cycles(spec, target, size, digits=digits, registers=registers, matrix=matrix, decoded=decoded)
        for size, count in sizes
        if count
    )
    waiting = _waiting(min(tile.blocks, ceil(spec.out_features / 16)), min(rows, tile.rows), tile.ahead)
    return (tiles + chunks * (before + waiting * read)) * _asking_ahead(tile.ahead)


def _tile_cycles(
    spec: MatmulSpec,
    target: Target,
    tile: Tile,
    *,
    digits: int,
    registers: int,
    matrix: bool,
    decoded: bool,
) -> float:
    """All tiles of one size for the same rows, side by side."""
    r, b = tile.rows, min(tile.blocks, ceil(spec.out_features / 16))
    halves = 2 if spec.bits <= 4 else 1
    products = r * b * halves * digits * _dot_instructions(spec, target)
    # Matrix instructions find codes decoded, and two rows in one load; ARM's dot products take x by lane.
    loads, decoding = (halves, 0) if matrix or decoded else _decoding(spec, target)
    rows_or_k = (2 if matrix else 4) if target.family == "arm" else 1
    inner = Loop(
        loads=b * loads,
        broadcasts=r * halves * digits / rows_or_k,
        operations=b * decoding + products / (2 if matrix else 1),
        chain=DOT_LATENCY * halves / tile.sums,
        live=r * b * tile.sums * digits + b * halves + 1,
    )
    outer = Loop(
        loads=b + r * b,
        broadcasts=r * (1 + digits),
        operations=5 * b + r * b * (3 * digits + 2) + r * b * digits * (tile.sums - 1),
        live=r * b * (1 + digits) + 2 * b,
    )
    chunks = spec.group_size // (4 * halves)
    group = chunks * inner.cycles(target, registers) + outer.cycles(target, registers)
    return ceil(spec.out_features / 16 / b) * (spec.groups * group + TILE_OVERHEAD + 4 * r * b)


def _waiting(blocks: int, rows: int, ahead: int) -> float:
    """Cycles that 64 bytes of weights are late when a task reads them first.

    Measured on a Zen 5. By itself a core looks ahead as far as the instructions that it holds go, and each row adds
    some. Two blocks lie in memory as they are read.
    """
    unasked = 0.0 if ahead else 2.0 * min(rows, 8) - 1.5
    return unasked + (0.0 if blocks == 2 else 2.0)


def _asking_ahead(ahead: int) -> float:
    """How far matters little."""
    return 1 + 0.01 * abs(log2(ahead / BEST_AHEAD)) if ahead else 1.0


def float_row_cycles(spec: MatmulSpec, target: Target, config: FloatConfig) -> float:
    """The float32 kernel at M = 1."""
    b = min(config.gemv_blocks, ceil(spec.out_features / 16))
    codes = 8 if spec.bits <= 4 else 4
    decode = 2 if config.use_lookup and spec.bits <= 4 else 3
    inner = Loop(
        loads=b,
        broadcasts=codes,
        operations=b * codes * (decode + 1),
        chain=FMA_LATENCY * codes / config.gemv_sums,
        live=b * config.gemv_sums + b + 2,
    )
    outer = Loop(loads=2 * b, broadcasts=1, operations=b * (config.gemv_sums + 6))
    group = (spec.group_size // codes) * inner.cycles(target, config.registers) + outer.cycles(
        target, config.registers
    )
    return ceil(spec.out_features / 16 / b) * (spec.groups * group + TILE_OVERHEAD)


def float_rows_cycles(spec: MatmulSpec, target: Target, config: FloatConfig, rows: int) -> float:
    """The float32 kernel at M > 1."""
    r, b = config.tile_rows, min(config.tile_blocks, ceil(spec.out_features / 16))
    at_once = min(rows, config.rows_at_once)
    decode = 3 if config.use_lookup and spec.bits <= 4 else 4
    product = Loop(loads=b, broadcasts=r, operations=r * b, chain=FMA_LATENCY, live=r * b + b + 1)
    decoding = Loop(loads=b / 8, broadcasts=0, operations=b * (decode + 1))
    panel_bytes = config.panel_k * b * 64
    near = 1.0 if panel_bytes <= (target.l1_bytes or 32 * 2**10) * 3 / 4 else 1.2
    moved = Loop(loads=2 * r * b, broadcasts=0, operations=0)
    tiles = ceil(at_once / r)
    panel = (
        config.panel_k * decoding.cycles(target, config.registers)
        + tiles * config.panel_k * product.cycles(target, config.registers) * near
        + tiles * (moved.cycles(target, config.registers) + TILE_OVERHEAD)
    )
    panels = ceil(spec.in_features / config.panel_k) * ceil(rows / at_once)
    return ceil(spec.out_features / 16 / b) * panels * panel


def dense_cycles(spec: DenseSpec, target: Target, config: DenseConfig, rows: int) -> float:
    """The kernels of unquantized weights."""
    many = rows > 1
    r = config.tile_rows if many else 1
    b = min(config.tile_blocks if many else config.one_row_blocks, ceil(spec.out_features / 16))
    sums = 1 if many else config.one_row_sums
    widening = {"float32": 0, "float16": 1, "bfloat16": 2}[spec.weight_dtype]
    loop = Loop(
        loads=b if spec.weight_dtype == "float32" else b / 2,
        broadcasts=r,
        operations=r * b + widening * b,
        chain=FMA_LATENCY / sums,
        live=r * b * sums + b + 1,
    )
    tiles = ceil(spec.out_features / 16 / b) * ceil(rows / r)
    return tiles * (spec.in_features * loop.cycles(target, config.registers) + TILE_OVERHEAD + 4 * r * b)
