"""Codes of 2 and 3 bits (``BitPlanesLayout``) to operands of dot products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.vectors import LANES, Buffer, Expression, lanes, prefetch, splat
from awq_tvm.schedules.layout import BitPlanesLayout
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from awq_tvm.targets import Target

PLANES_DIMENSIONS = 6
"""Of the array of codes; without planes it has one less."""

_PAY = frozenset({"avx512bw"})
"""Features with which codes are decoded from bit planes as fast as memory sends them."""

_BYTES = 4 * LANES


def planes(spec: MatmulSpec, target: Target) -> int:
    """Vectors of 64 bytes for 16 outputs and 32 k; 0 where bit planes are not used."""
    return BitPlanesLayout.planes(spec) if target.features & _PAY else 0


class PlaneCodes(Codes):
    """Reads 16 outputs x 32 k at a time: two vectors of 64 bytes with the low two bits, one with the third bits.

    Args:
        spec: the linear, of 2 or 3 bits in groups of a multiple of 32.
        weights: qweight uint8 [N32, K // 32, 2, bits, 16, 4], scales float16 [N32, G, 2, 16], zeros
            uint8 [N32, G, 2, 16].
    """

    def __init__(self, spec: MatmulSpec, weights: tuple[Buffer, ...]) -> None:
        super().__init__(spec, weights)
        self.code_bits, self.chunk = spec.bits, 32
        self.chunks_per_group = spec.group_size // self.chunk
        self.step_bytes = 2 * spec.bits * _BYTES

    def byte_operands(self, block: Expression, chunk: Expression) -> Iterator[tuple[int, Expression]]:
        """See ``Codes.byte_operands``."""
        high = self._plane(block, chunk, 2) if self.code_bits == 3 else None
        for half in range(2):
            low = self._plane(block, chunk, half)
            for i in range(4):
                codes = _and(_shifted_right(low, 2 * i), 3)
                if high is not None:
                    # One instruction adds the bits, where there is one for any function of three operands.
                    codes = T.bitwise_or(codes, _and(_shifted_right(high, 4 * half + i - 2), 4))
                yield 16 * half + 4 * i, T.bind(T.reinterpret("int32x16", codes))

    def _prefetch_chunk(self, pair: Expression, chunk: Expression, half: Expression) -> None:
        for plane in range(self.code_bits):
            prefetch(self.qweight, [pair, chunk, half, plane, 0, 0])

    def _plane(self, block: Expression, chunk: Expression, plane: int) -> Expression:
        pairs, chunks = self.qweight.shape[:2]
        shape = (pairs, chunks, 2, self.code_bits, _BYTES)
        flat = T.decl_buffer(shape, "uint8", data=self.qweight.data)
        return T.bind(flat[(*self.place(block, chunk), plane, lanes(0, _BYTES))])


def _and(codes: Expression, mask: int) -> Expression:
    return T.bitwise_and(codes, splat(mask, "uint8", _BYTES))


def _shifted_right(codes: Expression, count: int) -> Expression:
    if count == 0:
        return codes
    shift = splat(abs(count), "uint8", _BYTES)
    return T.shift_right(codes, shift) if count > 0 else T.shift_left(codes, shift)
