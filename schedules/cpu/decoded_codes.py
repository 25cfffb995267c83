"""Codes decoded ahead, where one decoding costs more than reading a byte for each code from a cache again."""

from __future__ import annotations

from collections.abc import Iterator

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.codes import Codes
from awq_tvm.schedules.cpu.vectors import LANES, Expression, lanes


class DecodedCodes(Codes):
    """Scratch for all k of some blocks side by side: uint8 [blocks, K / 4, 16, 4], the operands of dot products.

    Args:
        codes: what to decode.
        first_block: of the blocks.
        blocks: how many.
        ahead: bytes of codes before the place where it decodes that it asks for them, 0 for none.
    """

    def __init__(self, codes: Codes, first_block: Expression, blocks: int, ahead: int) -> None:
        super().__init__(codes.spec, (codes.qweight, codes.scales, codes.zeros))
        self._codes = codes
        self._first, steps = first_block, codes.spec.in_features // 4
        self._operands = T.alloc_buffer((blocks, steps, LANES), "int32")
        self.chunk, self.chunks_per_group = 4, codes.spec.group_size // 4
        for i in range(blocks):
            with T.serial(0, codes.spec.in_features // codes.chunk) as chunk:
                if ahead:
                    codes.prefetch_chunks(first_block + i, chunk, 1, ahead, blocks)
                for k, operand in codes.byte_operands(first_block + i, chunk):
                    step = chunk * (codes.chunk // 4) + k // 4
                    T.buffer_store(self._operands, operand, [i, step, lanes()])

    def byte_operands(self, block: Expression, chunk: Expression) -> Iterator[tuple[int, Expression]]:
        """See ``Codes.byte_operands``."""
        yield 0, T.bind(self._operands[block - self._first, chunk, lanes()])

    def prefetch_chunks(
        self, block: Expression, chunk: Expression, count: int, ahead: int, blocks: int
    ) -> None:
        """Ask for the codes of the next tile at the same k, which are decoded when this one is done."""
        steps = int(self._codes.qweight.shape[1])
        same_k = T.truncdiv(chunk * self.chunk, T.int64(self._codes.chunk))
        self._codes.prefetch_chunks(block, steps + same_k, 1, 0, blocks)
