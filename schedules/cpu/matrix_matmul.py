"""Many rows by matrix instructions: each group of a block is decoded once and multiplied by all rows there.

Between the groups the float32 sums lie in memory. A group of a block (16 bytes for each k), that group of all rows
and their sums are what a task goes over again and again: with groups of 64 and 128 rows 17 KiB, so that they stay in
the first-level cache whatever K is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.group_sums import centred
from awq_tvm.schedules.cpu.kernel import PASSES_OF_MANY_ROWS, Operands
from awq_tvm.schedules.cpu.matrix_sums import MatrixSums, PairedOutputs
from awq_tvm.schedules.cpu.vectors import LANES, Buffer, Expression, fma, lanes, splat

if TYPE_CHECKING:
    from awq_tvm.schedules.cpu.paired_rows import PairedRows


def columns(operands: Operands, x: PairedRows, rows: int, first_row: Expression, count: Expression) -> None:
    """y[first_row : first_row + count] from the quantized rows 0 .. count - 1, all columns in parallel.

    Args:
        operands: of the linear.
        x: the quantized rows.
        rows: that are multiplied at once; divides the capacity of ``x``.
        first_row: the row of y that row 0 of ``x`` belongs to.
        count: rows present, at most the capacity of ``x``.
    """
    codes = Codes(operands.spec, operands.weights)
    with operands.share_out(operands.blocks, PASSES_OF_MANY_ROWS) as block:
        totals = T.alloc_buffer((x.capacity, 1, LANES), "float32")
        with T.serial(0, count) as row:
            T.buffer_store(totals, splat(0.0), [row, 0, lanes()])
        outputs = PairedOutputs(codes)
        # LLVM would unroll a loop whose length it knows, ask for operands early, run out of registers and spill.
        steps = T.bind(T.min(count, T.int64(1)) * outputs.steps)
        with T.serial(0, operands.spec.groups) as group:
            outputs.fill(block, group)
            scale, zero = T.bind(codes.scale(block, group)), T.bind(codes.zero(block, group))
            with T.serial(0, T.ceildiv(count, rows)) as tile:
                # Rows beyond the last one are computed from whatever the scratch holds, and not stored.
                _add_group(totals, outputs, x, T.bind(tile * rows), rows, group, steps, scale, zero)
        operands.output.store_array(totals, first_row, block, count)


def _add_group(
    totals: Buffer,
    outputs: PairedOutputs,
    x: PairedRows,
    first: Expression,
    rows: int,
    group: Expression,
    steps: Expression,
    scale: Expression,
    zero: Expression,
) -> None:
    """totals[first : first + rows] += what one group adds to them."""
    sums = MatrixSums(rows, len(x.planes))
    with T.serial(0, steps) as step:
        sums.add(outputs, x, first, group, step)
    for r in range(rows):
        x_sums = [T.bind(splat(plane_sums[group, first + r])) for plane_sums in x.sums]
        x_scale = T.bind(splat(x.scales[group, first + r]))
        total = totals[first + r, 0, lanes()]
        value = fma(centred(sums.values(r), x_sums, zero), scale * x_scale, total)
        T.buffer_store(totals, value, [first + r, 0, lanes()])
