"""Group sums by matrix instructions: two outputs times two rows of x, eight k at once.

``usmmla`` adds u8[2, 8] @ s8[2, 8].T to int32[2, 2]: twice the products of a four-way dot product of 16 bytes.
Its first operand is made of the layout that the dot products read, once for all rows (``PairedOutputs``): of two
vectors of 16 outputs x 4 k, for k and for k + 4, zips of 32-bit lanes make eight registers of 2 outputs x 8 k. Its
second is two rows of x, eight digits in turn (``PairedRows``), one load.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.paired_rows import STEP, PairedRows
from awq_tvm.schedules.cpu.vectors import LANES, Expression, Register, lanes, splat

_PAIRS = LANES // 2
_BYTES = 2 * STEP
"""Of an operand: two outputs or two rows."""


class PairedOutputs:
    """Scratch for a group of one block of outputs, as the instruction takes it: uint8 [group_size / 8, 8, 2, 8].

    Args:
        codes: the packed weights.
    """

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        self.steps = codes.chunks_per_group * codes.chunk // STEP
        self._buffer = T.alloc_buffer((self.steps, _PAIRS, _BYTES), "uint8")

    def fill(self, block: Expression, group: Expression) -> None:
        """Decode a group of a block."""
        chunks = STEP // self._codes.chunk
        with T.serial(0, self.steps) as step:
            chunk = T.bind(group * self._codes.chunks_per_group + step * chunks)
            for quarter in range(4):
                fours = self._codes.two_fours(block, chunk, quarter)
                first, second = (T.bind(T.reinterpret("int32x4", four)) for four in fours)
                for i in (0, 1):
                    both = [tirx.IntImm("int32", lane) for lane in (2 * i, 2 * i + 4, 2 * i + 1, 2 * i + 5)]
                    paired = T.reinterpret(f"uint8x{_BYTES}", tirx.Shuffle([first, second], both))
                    T.buffer_store(self._buffer, paired, [step, 2 * quarter + i, lanes(0, _BYTES)])

    def pair(self, step: Expression, i: int) -> Expression:
        """Eight k of output 2 i of the block, then of the next, as uint8x16."""
        return self._buffer[step, i, lanes(0, _BYTES)]


class MatrixSums:
    """Sums of 2 outputs x 2 rows in a register, zero when made: lane 2 i + j belongs to output i and row j.

    Args:
        rows: of the tile, an even number; they begin at an even row.
        planes: digits of an activation.
    """

    def __init__(self, rows: int, planes: int) -> None:
        def registers() -> list[Register]:
            return [Register(splat(0, "int32", 4), "int32", 4) for _ in range(_PAIRS)]

        self._sums = [[registers() for _ in range(planes)] for _ in range(rows // 2)]

    def add(
        self,
        outputs: PairedOutputs,
        x: PairedRows,
        first_row: Expression,
        group: Expression,
        step: Expression,
    ) -> None:
        """Add the products of eight k."""
        digits = [
            [T.bind(x.pair(plane, first_row + 2 * i, group, step)) for plane in range(len(planes))]
            for i, planes in enumerate(self._sums)
        ]
        for i in range(_PAIRS):
            codes = T.bind(outputs.pair(step, i))
            for row_sums, row_digits in zip(self._sums, digits, strict=True):
                for registers, pair in zip(row_sums, row_digits, strict=True):
                    registers[i].set(_usmmla(registers[i].get(), codes, pair))

    def values(self, row: int) -> list[Expression]:
        """The sums of a row of the tile, int32x16 for each plane."""
        of_row = [tirx.IntImm("int32", 2 * output + row % 2) for output in range(LANES)]
        return [
            tirx.Shuffle([register.get() for register in registers], of_row)
            for registers in self._sums[row // 2]
        ]


def _usmmla(sums: Expression, codes: Expression, x: Expression) -> Expression:
    return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.usmmla.v4i32.v16i8", sums, codes, x)
