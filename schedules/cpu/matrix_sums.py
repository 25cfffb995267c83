"""Group sums by matrix instructions: two outputs times two rows of x, eight k at once.

``usmmla`` adds u8[2, 8] @ s8[2, 8].T to int32[2, 2]: twice the products of a four-way dot product of 16 bytes.
Its first operand comes from the layout that the dot products read: of two vectors of 16 outputs x 4 k, for k and
for k + 4, zips of 32-bit lanes make eight registers of 2 outputs x 8 k. Its second is two rows of x, eight digits
in turn (``PairedRows``), one load.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.group_sums import GroupSums
from awq_tvm.schedules.cpu.quantized_rows import PairedRows, QuantizedRows
from awq_tvm.schedules.cpu.vectors import LANES, Expression, Register, splat

STEP = 8
"""k that an instruction takes."""

_PAIRS = LANES // 2


class MatrixSums(GroupSums):
    """Sums of 2 outputs x 2 rows in a register: lane 2 i + j belongs to output i and row j.

    Args:
        rows: of the tile, an even number; they begin at an even row.
        blocks: of the tile.
        planes: digits of an activation.
    """

    def __init__(self, rows: int, blocks: int, planes: int) -> None:
        def registers() -> list[Register]:
            return [Register(splat(0, "int32", 4), "int32", 4) for _ in range(_PAIRS)]

        self._sums = [[[registers() for _ in range(planes)] for _ in range(blocks)] for _ in range(rows // 2)]

    def chunks_per_step(self, codes: Codes) -> int:
        """See ``GroupSums.chunks_per_step``."""
        return STEP // codes.chunk

    def steps(self, codes: Codes, present: Expression) -> Expression:
        """See ``GroupSums.steps``; LLVM would unroll a loop whose length it knows, run out of registers and spill."""
        return T.min(present, T.int64(1)) * super().steps(codes, present)

    def add(
        self,
        codes: Codes,
        x: QuantizedRows,
        blocks: list[Expression],
        rows: list[Expression],
        chunk: Expression,
    ) -> None:
        """See ``GroupSums.add``; ``x`` is of ``PairedRows``."""
        assert isinstance(x, PairedRows)
        k = chunk * codes.chunk
        digits = [[T.bind(x.pair(plane, row, k)) for plane in range(len(x.planes))] for row in rows[::2]]
        for b, block in enumerate(blocks):
            for i, outputs in enumerate(_by_output(codes, block, chunk)):
                operand = T.bind(outputs)
                for row_sums, row_digits in zip(self._sums, digits, strict=True):
                    for registers, pair in zip(row_sums[b], row_digits, strict=True):
                        registers[i].set(_usmmla(registers[i].get(), operand, pair))

    def values(self, row: int, block: int) -> list[Expression]:
        """See ``GroupSums.values``."""
        of_row = [tirx.IntImm("int32", 2 * output + row % 2) for output in range(LANES)]
        return [
            tirx.Shuffle([register.get() for register in registers], of_row)
            for registers in self._sums[row // 2][block]
        ]


def _by_output(codes: Codes, block: Expression, chunk: Expression) -> Iterator[Expression]:
    """The codes of a step as eight times int32x4: two outputs, of each the first four k and the next four.

    Four outputs are decoded at a time, after the products of the last four: all sixteen would take registers.
    """
    for quarter in range(4):
        first, second = (T.reinterpret("int32x4", four) for four in codes.two_fours(block, chunk, quarter))
        for i in (0, 2):
            both = [tirx.IntImm("int32", lane) for lane in (i, i + 4, i + 1, i + 5)]
            yield tirx.Shuffle([first, second], both)


def _usmmla(sums: Expression, codes: Expression, x: Expression) -> Expression:
    return T.call_llvm_pure_intrin(
        "int32x4", "llvm.aarch64.neon.usmmla.v4i32.v16i8", sums, T.reinterpret("uint8x16", codes), x
    )
