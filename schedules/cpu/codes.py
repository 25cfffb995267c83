"""From packed codes (``PairedBlocksLayout``) to operands of dot products and to float lanes."""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.vectors import LANES, Buffer, Expression, fma, lanes, prefetch, splat
from awq_tvm.schedules.spec import MatmulSpec


class Codes:
    """Reads the weight arrays of one linear, 16 outputs at a time.

    A chunk is what 64 bytes hold: 16 outputs x ``chunk`` consecutive k.

    Args:
        spec: the linear.
        weights: qweight uint8 [N32, K // chunk, 2, 16, 4], scales float16 [N32, G, 2, 16], zeros
            uint8 [N32, G, 2, 16]; of ``SignedBlocksLayout`` int8, which floats cannot be decoded from.
        use_lookup: decode nibbles with one AVX-512 permutation each instead of mask and conversion.

    Attributes:
        chunk: k that ``byte_operands`` reads at once.
        chunks_per_group: of one block.
        step_bytes: from a chunk to the next of the same block: two blocks lie side by side.
    """

    def __init__(self, spec: MatmulSpec, weights: tuple[Buffer, ...], use_lookup: bool = False) -> None:
        self.spec = spec
        self.qweight, self.scales, self.zeros = weights
        self.code_bits = 4 if spec.bits <= 4 else 8
        self.chunk = 32 // self.code_bits
        self.chunks_per_group = spec.group_size // self.chunk
        self.step_bytes = 128
        self.use_lookup = use_lookup and self.code_bits == 4

    def offset(self, position: int) -> int:
        """The k within a chunk of the code at bits [code_bits * position, ...) of a 32-bit lane."""
        return position if self.code_bits == 8 else position // 2 + 4 * (position % 2)

    def words(self, block: Expression, chunk: Expression) -> Expression:
        """A chunk as int32x16, bound to a variable."""
        return T.bind(T.reinterpret("int32x16", self.words_as_bytes(block, chunk)))

    def words_as_bytes(self, block: Expression, chunk: Expression) -> Expression:
        """A chunk as 64 bytes of the array's dtype."""
        return self._bytes(block, chunk, 0, 4 * LANES)

    def _bytes(self, block: Expression, chunk: Expression, start: int, count: int) -> Expression:
        pairs, chunks = self.qweight.shape[:2]
        flat = T.decl_buffer((pairs, chunks, 2, 4 * LANES), self.qweight.dtype, data=self.qweight.data)
        return flat[(*self.place(block, chunk), lanes(start, count))]

    def prefetch_chunks(
        self, block: Expression, chunk: Expression, count: int, ahead: int, blocks: int
    ) -> None:
        """Ask for the chunks so many bytes further on; after the end of a row comes that of the next tile.

        Args:
            block: of the tile.
            chunk: the first that is read now.
            count: of chunks.
            ahead: bytes.
            blocks: of the tile.
        """
        later = chunk + ahead // self.step_bytes
        pair, later, half = self._later(block, later, blocks, self.qweight.shape[1])
        for i in range(count):
            self._prefetch_chunk(pair, later + i, half)

    def prefetch_group(self, block: Expression, group: Expression, ahead: int, blocks: int) -> None:
        """Ask for the scales and zero points that go with the chunks so many bytes further on."""
        groups = -(-ahead // (self.step_bytes * self.chunks_per_group))
        later = self._later(block, group + groups, blocks, self.spec.groups)
        prefetch(self.scales, [*later, 0])
        prefetch(self.zeros, [*later, 0])

    def _prefetch_chunk(self, pair: Expression, chunk: Expression, half: Expression) -> None:
        prefetch(self.qweight, [pair, chunk, half, 0, 0])

    def _later(
        self, block: Expression, step: Expression, blocks: int, steps: int
    ) -> tuple[Expression, Expression, Expression]:
        """Where a block of a tile is at a step that may lie beyond the last one: there, the next tile begins."""
        if blocks == 2:
            return self.place(
                block, step
            )  # a tile's two rows lie side by side, and the next tile's behind them
        beyond = T.bind(step >= steps)
        return self.place(T.Select(beyond, block + blocks, block), T.Select(beyond, step - steps, step))

    def byte_operands(self, block: Expression, chunk: Expression) -> Iterator[tuple[int, Expression]]:
        """A chunk for four-way dot products: (k within the chunk, 64 codes as bytes of int32x16) pairs.

        Each is decoded when it is asked for.
        """
        if self.code_bits == 8:
            yield 0, self.words(block, chunk)
            return
        for i, codes in enumerate(_nibbles(T.bind(self.words_as_bytes(block, chunk)), 4 * LANES)):
            yield 4 * i, T.bind(T.reinterpret("int32x16", codes))

    def two_fours(self, block: Expression, chunk: Expression, quarter: int) -> tuple[Expression, Expression]:
        """Eight k from a chunk on of outputs 4 quarter .. 4 quarter + 3 of a block.

        Returns:
            Two times uint8x16, 4 outputs x 4 k: the nibbles of one chunk, or the bytes of two.
        """
        if self.code_bits == 8:
            return self._quarter(block, chunk, quarter), self._quarter(block, chunk + 1, quarter)
        low, high = _nibbles(self._quarter(block, chunk, quarter), LANES)
        return low, high

    def _quarter(self, block: Expression, chunk: Expression, quarter: int) -> Expression:
        """16 of the 64 bytes of a chunk, bound to a variable."""
        return T.bind(self._bytes(block, chunk, 16 * quarter, 16))

    def values(self, words: Expression, position: int) -> Expression:
        """The codes at one position of a chunk as float32x16."""
        shift = self.code_bits * position
        shifted = words >> splat(shift, "int32") if shift else words
        if self.use_lookup:
            # The permutation looks at the low 4 bits of an index only: no mask, no conversion.
            table = T.cast(lanes(), "float32x16")
            return T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.permvar.sf.512", table, shifted)
        mask = (1 << self.code_bits) - 1
        return T.cast(T.bitwise_and(shifted, splat(mask, "int32")), "float32x16")

    def scale(self, block: Expression, group: Expression) -> Expression:
        """The scales of 16 outputs as float32x16."""
        return T.cast(self.scales[(*self.place(block, group), lanes())], "float32x16")

    def zero(self, block: Expression, group: Expression) -> Expression:
        """The zero points of 16 outputs as float32x16."""
        return T.cast(T.cast(self.zeros[(*self.place(block, group), lanes())], "int32x16"), "float32x16")

    def dequantized(
        self, words: Expression, position: int, scale: Expression, shift: Expression
    ) -> Expression:
        """The codes times scale plus shift, with shift = -zero * scale."""
        return fma(self.values(words, position), scale, shift)

    @staticmethod
    def place(block: Expression, step: Expression) -> tuple[Expression, Expression, Expression]:
        """Where a block of 16 outputs is at a chunk or group: by shifts, for a division would round towards zero."""
        if isinstance(block, int):
            return block // 2, step, block % 2
        one = tirx.const(1, block.ty.dtype)
        return T.shift_right(block, one), step, T.bitwise_and(block, one)


def _nibbles(codes: Expression, count: int) -> Iterator[Expression]:
    """The low and the high halves of ``count`` bytes; a shift of bytes needs no mask after it, where there is one."""
    yield T.bind(T.bitwise_and(codes, splat(0x0F, "uint8", count)))
    yield T.bind(T.shift_right(codes, splat(4, "uint8", count)))
