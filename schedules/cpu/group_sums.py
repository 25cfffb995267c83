"""What the inner loop of an integer kernel adds up: a tile's whole-number sums over one group."""

from __future__ import annotations

from itertools import product

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.dot import Dot, DotProduct
from awq_tvm.schedules.cpu.quantized_rows import DIGIT_BITS, QuantizedRows
from awq_tvm.schedules.cpu.vectors import Expression, Register, fma, splat, take


class DotSums:
    """Sums of code times digit in lanes of 16 outputs, by four-way dot products; zero when made.

    Args:
        rows: of the tile.
        blocks: of the tile.
        planes: digits of an activation.
        dot: the instructions.
        parts: independent sums for each row and block, to hide the latency of a dot product.
    """

    def __init__(self, rows: int, blocks: int, planes: int, dot: DotProduct, parts: int) -> None:
        self._dot = dot
        self._sums = [[[_Sums(parts) for _ in range(planes)] for _ in range(blocks)] for _ in range(rows)]

    def chunks_at_once(self, codes: Codes) -> int:
        """How many chunks ``add`` takes: as many as a register of x serves, if groups are made of so many."""
        many = 16 // codes.chunk
        return many if self._dot.by_lane and codes.chunks_per_group % many == 0 else 1

    def add(
        self,
        codes: Codes,
        x: QuantizedRows,
        blocks: list[Expression],
        rows: list[Expression],
        chunk: Expression,
    ) -> None:
        """Add the products of ``chunks_at_once`` chunks from this one on."""
        sixteens: dict[tuple[int, int], Expression] = {}
        if self.chunks_at_once(codes) > 1:
            for (r, row), plane in product(enumerate(rows), range(len(x.planes))):
                sixteens[r, plane] = T.bind(x.sixteen(plane, row, chunk * codes.chunk))
        for i in range(self.chunks_at_once(codes)):
            by_block = [codes.byte_operands(block, chunk + i) for block in blocks]
            for part, operands in enumerate(zip(*by_block, strict=True)):
                k = i * codes.chunk + operands[0][0]
                # Row by row, or every broadcast would want a register of its own.
                for r, row in enumerate(rows):
                    for plane in range(len(x.planes)):
                        if sixteens:
                            digits = splat(take(sixteens[r, plane], [k // 4]))
                        else:
                            digits = x.broadcast(plane, row, chunk * codes.chunk + k)
                        digits = T.bind(digits)
                        for (_, block_codes), planes in zip(operands, self._sums[r], strict=True):
                            planes[plane].add(self._dot.add, block_codes, digits, part)

    def values(self, row: int, block: int) -> list[Expression]:
        """The sums of a row and a block of the tile, int32x16 for each plane."""
        return [plane.value() for plane in self._sums[row][block]]


class _Sums:
    """The integer sum of a row and a block, in one register or two."""

    def __init__(self, count: int) -> None:
        self._registers = [Register(splat(0, "int32"), "int32") for _ in range(count)]

    def add(self, dot: Dot, codes: Expression, digits: Expression, turn: int) -> None:
        register = self._registers[turn % len(self._registers)]
        register.set(dot(register.get(), codes, digits))

    def value(self) -> Expression:
        total = self._registers[0].get()
        for register in self._registers[1:]:
            total = total + register.get()
        return total


def centred(sums: list[Expression], x_sums: list[Expression], zero: Expression) -> Expression:
    """What the planes' sums of a group come to: the sum of (q - z) * t, by Horner's rule over the digits of t.

    Args:
        sums: of q * digit, int32x16 for each plane.
        x_sums: of the digits, float32x16.
        zero: z, float32x16.
    """
    digits = [T.cast(p, "float32x16") - zero * s for p, s in zip(sums, x_sums, strict=True)]
    value = digits[0]
    for digit in digits[1:]:
        value = fma(value, splat(float(1 << DIGIT_BITS)), digit)
    return value
