"""The float32 kernels: y = epilogue(x @ dequantize(W).T) with x as it is.

M = 1 aims at the read bandwidth: each code is decoded in a register and multiplied at once; scale and zero
point enter once a group, y += s * (sum(q x) - z * sum(x)). M > 1 aims at the FMA peak: a panel of W is
decoded into a float32 scratch that stays in the cache, and a register tile of rows x columns sweeps over it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.kernel import Operands
from awq_tvm.schedules.cpu.vectors import (
    LANES,
    Buffer,
    Expression,
    Register,
    fma,
    horizontal_sum,
    lanes,
    splat,
)
from awq_tvm.schedules.spec import MatmulSpec


@dataclass(frozen=True)
class FloatConfig:
    """How the float32 kernels are tiled.

    Args:
        registers: vector registers of the target, counted in units of 64 bytes (32 zmm = 32, 16 ymm = 8,
            32 NEON = 8).
        use_lookup: decode nibbles with an AVX-512 permutation.
        gemv_blocks: blocks of 16 outputs that M = 1 works on at once.
        gemv_sums: independent partial sums a block, to hide the latency of FMA.
        tile_rows: rows of x in the register tile, M > 1.
        tile_blocks: blocks of 16 outputs in the register tile.
        panel_k: k decoded at once, at most; the scratch has panel_k * tile_blocks * 64 bytes.
        rows_at_once: rows of x that share one decoding of the panel; a multiple of tile_rows.

    Raises:
        UnsupportedError: the tile does not fit the registers, or the counts do not divide.
    """

    registers: int
    use_lookup: bool
    gemv_blocks: int
    gemv_sums: int
    tile_rows: int
    tile_blocks: int
    panel_k: int = 256
    rows_at_once: int = 128

    def __post_init__(self) -> None:
        """Prove the tile possible."""
        where = f"{self.tile_rows} rows x {16 * self.tile_blocks} columns"
        if self.tile_rows * self.tile_blocks >= self.registers:
            raise UnsupportedError(
                "The register tile does not fit", where=where, why=f"{self.registers} vectors"
            )
        if self.gemv_blocks * self.gemv_sums >= self.registers:
            raise UnsupportedError("The M = 1 sums do not fit", where=f"{self.registers} vectors")
        if self.rows_at_once % self.tile_rows:
            raise UnsupportedError("rows_at_once is not a multiple of tile_rows", where=where)
        if self.panel_k % 8:
            raise UnsupportedError("panel_k is not a multiple of 8", where=where)


def largest_divisor(of: int, at_most: int, multiple_of: int) -> int:
    """The largest divisor of ``of`` up to ``at_most`` that is a multiple of the divisor ``multiple_of``."""
    best = multiple_of
    for candidate in range(multiple_of, min(of, at_most) + 1, multiple_of):
        if of % candidate == 0:
            best = candidate
    return best


def _codes(operands: Operands, config: FloatConfig) -> Codes:
    return Codes(operands.spec, operands.weights, use_lookup=config.use_lookup)


def one_row(operands: Operands, config: FloatConfig) -> None:
    """M = 1: every weight is read once, in order."""
    codes = _codes(operands, config)
    sums = group_sums(operands.x, operands.spec)
    at_once = min(config.gemv_blocks, operands.blocks)
    with operands.share_out(-(-operands.blocks // at_once), 1) as task:
        # The last task may reach back into its neighbour's blocks and compute them a second time.
        start = T.bind(T.min(task * at_once, operands.blocks - at_once))
        blocks = [start + i for i in range(at_once)]
        totals = [Register(splat(0.0)) for _ in blocks]
        with T.serial(0, operands.spec.groups) as group:
            partial = _group_products(operands, codes, blocks, group, config.gemv_sums)
            x_sum = T.bind(splat(sums[group]))
            for block, total, product in zip(blocks, totals, partial, strict=True):
                centred = product - codes.zero(block, group) * x_sum
                total.add_product(codes.scale(block, group), centred)
        operands.output.store_tile([totals], 0, start)


def group_sums(x: Buffer, spec: MatmulSpec) -> Buffer:
    """sum(x[0, k]) over each group, float32 [G]; the group size is a multiple of 8."""
    sums = T.alloc_buffer((spec.groups,), "float32")
    width = LANES if spec.group_size % LANES == 0 else 8
    with T.serial(0, spec.groups) as group:
        total = Register(splat(0.0))
        with T.serial(0, spec.group_size // width) as step:
            start = group * spec.group_size + step * width
            index = lanes(0, width)
            T.buffer_store(total.buffer, total.buffer[index] + x[0, lanes(start, width)], [index])
        T.buffer_store(sums, horizontal_sum(total.get()), [group])
    return sums


def _group_products(
    operands: Operands, codes: Codes, blocks: list[Expression], group: Expression, sums: int
) -> list[Expression]:
    """sum(q * x) over one group for each block, spread over ``sums`` independent additions."""
    partial = [[Register(splat(0.0)) for _ in range(sums)] for _ in blocks]
    with T.serial(0, codes.chunks_per_group) as step:
        chunk = T.bind(group * codes.chunks_per_group + step)
        words = [codes.words(block, chunk) for block in blocks]
        for position in range(codes.chunk):
            x = T.bind(splat(operands.x[0, chunk * codes.chunk + codes.offset(position)]))
            for word, registers in zip(words, partial, strict=True):
                registers[position % sums].add_product(codes.values(word, position), x)
    return [_sum([register.get() for register in registers]) for registers in partial]


def _sum(values: list[Expression]) -> Expression:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def many_rows(operands: Operands, config: FloatConfig) -> None:
    """M > 1: decode a panel of W once, use it for up to ``rows_at_once`` rows."""
    spec, codes = operands.spec, _codes(operands, config)
    at_once = min(config.tile_blocks, operands.blocks)
    panel_k = largest_divisor(spec.in_features, config.panel_k, codes.chunk)
    with T.parallel(0, -(-operands.blocks // at_once)) as task:
        start = T.bind(T.min(task * at_once, operands.blocks - at_once))
        blocks = [start + i for i in range(at_once)]
        panel = T.alloc_buffer((panel_k, at_once, LANES), "float32")
        sums = T.alloc_buffer((config.rows_at_once, at_once, LANES), "float32")
        with T.serial(0, T.ceildiv(operands.rows, config.rows_at_once)) as part:
            first_row = T.bind(part * config.rows_at_once)
            count = T.bind(T.min(operands.rows - first_row, T.int64(config.rows_at_once)))
            tiles = T.bind(T.ceildiv(count, config.tile_rows))
            with T.serial(0, tiles * (config.tile_rows * at_once)) as i:
                T.buffer_store(sums, splat(0.0), [i // at_once, i % at_once, lanes()])
            with T.serial(0, spec.in_features // panel_k) as p:
                first_k = T.bind(p * panel_k)
                decode_panel(codes, panel, blocks, first_k, panel_k, spec.group_size)
                with T.serial(0, tiles) as tile:
                    multiply_tile(operands, panel, sums, first_row, tile, first_k, panel_k, config, at_once)
            operands.output.store_array(sums, first_row, start, count)


def decode_panel(
    codes: Codes, panel: Buffer, blocks: list[Expression], first_k: Expression, panel_k: int, group_size: int
) -> None:
    """panel[k, i, j] = W[16 * blocks[i] + j, first_k + k] in float32."""
    run = largest_divisor(panel_k, group_size, codes.chunk)
    while group_size % run:
        run = largest_divisor(panel_k, run - 1, codes.chunk)
    for i, block in enumerate(blocks):
        with T.serial(0, panel_k // run) as r:
            group = T.bind((first_k + r * run) // group_size)
            scale = T.bind(codes.scale(block, group))
            shift = T.bind(splat(0.0) - scale * codes.zero(block, group))
            with T.serial(0, run // codes.chunk) as step:
                k = T.bind(r * run + step * codes.chunk)
                words = codes.words(block, (first_k + k) // codes.chunk)
                for position in range(codes.chunk):
                    value = codes.dequantized(words, position, scale, shift)
                    T.buffer_store(panel, value, [k + codes.offset(position), i, lanes()])


def multiply_tile(
    operands: Operands,
    panel: Buffer,
    sums: Buffer,
    first_row: Expression,
    tile: Expression,
    first_k: Expression,
    panel_k: int,
    config: FloatConfig,
    at_once: int,
) -> None:
    """sums[rows of the tile] += x[rows, first_k ...] @ panel, all sums in registers."""
    local = [tile * config.tile_rows + r for r in range(config.tile_rows)]
    # Rows beyond M repeat the last one; their sums are never stored to y.
    rows = [T.bind(T.min(first_row + row, operands.rows - 1)) for row in local]
    registers = [[Register(sums[row, i, lanes()]) for i in range(at_once)] for row in local]
    with T.serial(0, panel_k) as k:
        weights = [T.bind(panel[k, i, lanes()]) for i in range(at_once)]
        for row, line in zip(rows, registers, strict=True):
            x = T.bind(splat(operands.x[row, first_k + k]))
            for register, weight in zip(line, weights, strict=True):
                register.set(fma(x, weight, register.get()))
    for row, line in zip(local, registers, strict=True):
        for i, register in enumerate(line):
            T.buffer_store(sums, register.get(), [row, i, lanes()])
