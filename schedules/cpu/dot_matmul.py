"""The integer kernels: codes and quantized activations meet in byte dot products, float32 once a group.

y = sum over groups of s * xs * (sum(q * t) - z * sum(t)), where x = xs * t and t is an integer of one int8
digit (``activations="int8"``) or of several (``quantized_rows``). The sums of a digit over a group are exact,
the zero point included, so all rounding is in adding up the digits and the groups. M = 1 aims at the read
bandwidth, large M at the dot products' peak; both are the same register tile of rows x blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm.script.ir_builder import tirx as T

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu import matrix_matmul
from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.decoded_codes import DecodedCodes
from awq_tvm.schedules.cpu.dot import DotProduct
from awq_tvm.schedules.cpu.group_sums import DotSums, centred
from awq_tvm.schedules.cpu.kernel import PASSES_OF_MANY_ROWS, Operands
from awq_tvm.schedules.cpu.paired_rows import PairedRows
from awq_tvm.schedules.cpu.plane_codes import PLANES_DIMENSIONS, PlaneCodes
from awq_tvm.schedules.cpu.quantized_rows import QuantizedRows
from awq_tvm.schedules.cpu.vectors import Expression, Register, splat

AHEAD = 8 * 2**10
"""Bytes of codes that kernels for few rows ask for ahead: as many as memory sends in 200 ns, and a sixth of a
first-level cache."""


@dataclass(frozen=True)
class Tile:
    """Rows of x times blocks of 16 outputs that a task keeps in registers.

    Args:
        rows: of x.
        blocks: of 16 outputs.
        sums: independent integer sums for each row and block, 1 or 2, to hide the latency of a dot product.
        ahead: bytes of codes before the place where it reads that it asks for them; 0 leaves that to the processor.
    """

    rows: int
    blocks: int
    sums: int = 1
    ahead: int = 0

    def __post_init__(self) -> None:
        """Prove the counts legal.

        Raises:
            UnsupportedError: a count below 1, sums above 2, or ahead below 0.
        """
        if self.rows < 1 or self.blocks < 1 or self.sums not in (1, 2) or self.ahead < 0:
            raise UnsupportedError("This register tile is impossible", where=repr(self))

    @property
    def sizes(self) -> tuple[Tile, ...]:
        """This tile, and those for rows that do not fill it: each has half the rows of the one before."""
        return (self,) if self.rows == 1 else (self, *replace(self, rows=self.rows // 2).sizes)

    @property
    def may_lack(self) -> int:
        """Rows that may be missing where it is used all the same: three take less as four than as two and one."""
        return int(self.rows > 2)

    def cover(self, count: int) -> list[tuple[Tile, int]]:
        """How many tiles of each size compute so many rows: 13 are 8, 4 and 1."""
        found = []
        for size in self.sizes:
            fitting = max(0, (count + size.may_lack) // size.rows)
            found.append((size, fitting))
            count -= fitting * size.rows
        return found


@dataclass(frozen=True)
class DotConfig:
    """How the integer kernels are tiled.

    Args:
        registers: vector registers of the target, counted in bytes / 64.
        planes: int8 digits of an activation, 1 to 3.
        one_row: tile for M = 1.
        few_rows: tile for M up to ``few_rows_up_to``.
        many_rows: tile beyond.
        few_rows_up_to: the largest M that a single task quantizes before the others start; a multiple of
            few_rows.rows.
        rows_at_once: rows of x quantized together; a multiple of many_rows.rows.
        decode_once_from: rows at once from which codes of up to 4 bits are decoded once, for all tiles of many rows;
            0 for those in bit planes only, which always are.
        matrix: multiply many rows by matrix instructions, two rows and two outputs at once, instead of dot products.

    Raises:
        UnsupportedError: a tile does not fit the registers, or a count is out of range.
    """

    registers: int
    planes: int
    one_row: Tile
    few_rows: Tile
    many_rows: Tile
    few_rows_up_to: int = 8
    rows_at_once: int = 128
    decode_once_from: int = 1
    matrix: bool = False

    def __post_init__(self) -> None:
        """Prove the tiles possible."""
        if not 1 <= self.planes <= 3:
            raise UnsupportedError(f"{self.planes} planes of activations", fix="use 1 to 3")
        for tile in (self.one_row, self.few_rows, self.many_rows):
            if tile.rows * tile.blocks * tile.sums * self.planes >= self.registers:
                raise UnsupportedError(
                    "The register tile does not fit", where=repr(tile), why=f"{self.registers} vectors"
                )
        few, many = self.few_rows.rows, self.many_rows.rows
        if self.one_row.rows != 1 or self.few_rows_up_to % few or self.rows_at_once % many:
            raise UnsupportedError("The tiles and rows_at_once do not go together", where=repr(self))
        if self.decode_once_from < 0:
            raise UnsupportedError(f"Decoding once from {self.decode_once_from} rows on", fix="use 0 or more")
        if self.matrix and (many % 2 or self.many_rows.blocks != 1 or self.many_rows.sums != 1):
            raise UnsupportedError(
                "Matrix instructions cannot compute this tile",
                where=repr(self.many_rows),
                fix="use an even number of rows, one block and one sum",
            )


def one_row(operands: Operands, config: DotConfig, dot: DotProduct) -> None:
    """M = 1."""
    x = QuantizedRows(operands.spec, config.planes, 1)
    x.fill(operands.source, 0, 0)
    _columns(operands, x, config.one_row, dot, 0, 1)


def few_rows(operands: Operands, config: DotConfig, dot: DotProduct) -> None:
    """M up to ``config.few_rows_up_to``."""
    x = QuantizedRows(operands.spec, config.planes, config.few_rows_up_to)
    with T.serial(0, operands.rows) as row:
        x.fill(operands.source, row, row)
    _columns(operands, x, config.few_rows, dot, 0, operands.rows)


def many_rows(operands: Operands, config: DotConfig, dot: DotProduct) -> None:
    """Any M, ``rows_at_once`` at a time."""
    x = (PairedRows if config.matrix else QuantizedRows)(operands.spec, config.planes, config.rows_at_once)
    with T.serial(0, T.ceildiv(operands.rows, config.rows_at_once)) as part:
        first_row = T.bind(part * config.rows_at_once)
        count = T.bind(T.min(operands.rows - first_row, T.int64(config.rows_at_once)))
        with T.parallel(0, count) as row:
            x.fill(operands.source, first_row + row, row)
        if isinstance(x, PairedRows):
            matrix_matmul.columns(operands, x, config.many_rows.rows, first_row, count)
        else:
            _columns(operands, x, config.many_rows, dot, first_row, count, config.decode_once_from)


def _columns(
    operands: Operands,
    x: QuantizedRows,
    tile: Tile,
    dot: DotProduct,
    first_row: Expression,
    count: Expression,
    decode_once_from: int | None = None,
) -> None:
    """y[first_row : first_row + count] from the quantized rows 0 .. count - 1, all columns in parallel.

    ``decode_once_from`` is what ``DotConfig`` says of many rows; with None every tile decodes for itself.
    """
    planes = len(operands.weights[0].shape) == PLANES_DIMENSIONS
    at_once = min(tile.blocks, operands.blocks)
    passes = count if isinstance(count, int) else PASSES_OF_MANY_ROWS
    with operands.share_out(-(-operands.blocks // at_once), passes) as task:
        # The last task may reach back into its neighbour's blocks and compute them a second time.
        start = T.bind(T.min(task * at_once, operands.blocks - at_once))
        blocks = [start + i for i in range(at_once)]
        codes = (PlaneCodes if planes else Codes)(operands.spec, operands.weights)

        def tiles(decode: bool) -> None:
            if isinstance(count, int):
                _tile(operands, codes, x, tile, dot, blocks, [0], first_row, count)
                return
            read = DecodedCodes(codes, start, at_once, tile.ahead) if decode else codes

            def rows_from(first: Expression, size: Tile) -> None:
                # Rows beyond the last one are computed from whatever the scratch holds, and not stored.
                rows = [first + r for r in range(size.rows)]
                _tile(operands, read, x, size, dot, blocks, rows, first_row, count - first)

            _cover(count, tile, rows_from)

        if decode_once_from is None or operands.spec.bits > 4:
            tiles(False)
        elif planes or decode_once_from <= 1:
            tiles(planes or decode_once_from == 1)
        else:
            with T.If(count >= decode_once_from):
                with T.Then():
                    tiles(True)
                with T.Else():
                    tiles(False)


def _cover(count: Expression, tile: Tile, rows_from: Callable[[Expression, Tile], None]) -> None:
    """Emit the tiles of ``Tile.cover`` for the rows 0 .. count - 1; ``rows_from`` emits one, from a row on."""
    first: Expression = T.int64(0)
    for size in tile.sizes:
        fitting = T.bind(T.truncdiv(count - first + size.may_lack, T.int64(size.rows)))
        with T.serial(0, fitting) as t:
            rows_from(first + t * size.rows, size)
        first = T.bind(first + fitting * size.rows)


def _tile(
    operands: Operands,
    codes: Codes,
    x: QuantizedRows,
    tile: Tile,
    dot: DotProduct,
    blocks: list[Expression],
    rows: list[Expression],
    first_row: Expression,
    present: Expression,
) -> None:
    """One register tile over the whole of K, stored at the end; only the first ``present`` rows are."""
    totals = [[Register(splat(0.0)) for _ in blocks] for _ in rows]
    with T.serial(0, operands.spec.groups) as group:
        if tile.ahead:
            for block in blocks:
                codes.prefetch_group(block, group, tile.ahead, len(blocks))
        sums = DotSums(len(rows), len(blocks), len(x.planes), dot, tile.sums)
        at_once = sums.chunks_at_once(codes)
        with T.serial(0, codes.chunks_per_group // at_once) as step:
            chunk = T.bind(group * codes.chunks_per_group + step * at_once)
            if tile.ahead:
                for block in blocks:
                    codes.prefetch_chunks(block, chunk, at_once, tile.ahead, len(blocks))
            sums.add(codes, x, blocks, rows, chunk)
        scales = [T.bind(codes.scale(block, group)) for block in blocks]
        zeros = [T.bind(codes.zero(block, group)) for block in blocks]
        # Row by row: a broadcast of a row's number lives for the blocks of that row only.
        for r, (row, row_totals) in enumerate(zip(rows, totals, strict=True)):
            x_sums = [T.bind(splat(plane_sums[row, group])) for plane_sums in x.sums]
            x_scale = T.bind(splat(x.scales[row, group]))
            for b, (scale, zero, total) in enumerate(zip(scales, zeros, row_totals, strict=True)):
                total.add_product(centred(sums.values(r, b), x_sums, zero), scale * x_scale)
    first_block, row = blocks[0], first_row + rows[0]
    operands.output.store_tile(totals, row, first_block, None if len(rows) == 1 else present)
