"""Weights of the `mma_fragments` layout on their way: memory, shared memory, a lane's registers, decoded.

Codes, scales and zero points of some tiles and one block of k are copied to shared memory asynchronously, 16 bytes
at a time, because a copy stays where it stands: loads to registers are moved down to their use by the assembler, and
then too few are under way.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.codes import BROAD_BITS, codes_for, floats_of
from awq_tvm.schedules.cuda.config import GROUP_BYTES, ROWS, tile_bytes
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

BLOCK_K = 64
"""k of a block."""

HALF_K = 32
"""k of half a block: the smallest group, and of what one lane's 16 bytes of x are a part."""

CHUNK = 4
"""32-bit words of what is copied at once."""

SCALE_WORDS = 8
"""Words of a tile's scales of one group; behind them come its zero points."""


class Fragments:
    """The weight of one linear.

    Args:
        spec: the linear.
        arguments: the kernel's buffers by name.
    """

    def __init__(self, spec: MatmulSpec, arguments: dict[str, Any]) -> None:
        self.spec = spec
        self.tiles = -(-spec.out_features // ROWS)
        self.blocks = spec.in_features // BLOCK_K
        self.wide = spec.bits > BROAD_BITS
        self.format = codes_for(spec)
        self.qweight, self.scales, self.zeros = (arguments[name] for name in ("qweight", "scales", "zeros"))

    @property
    def lane_words(self) -> int:
        """32-bit words of a lane's codes of one tile and block."""
        return 2 * CHUNK if self.wide else CHUNK

    @property
    def sums_per_block(self) -> int:
        """How many parts of a block are summed apart: one, or each half where groups end between them."""
        return 1 if self.spec.group_size % BLOCK_K == 0 else 2

    @property
    def tile_words(self) -> int:
        """32-bit words of one tile and block in shared memory: codes, then scales and zero points of each part."""
        return tile_bytes(self.spec.bits, self.spec.group_size) // 4

    def read_codes(self, shared: Any, base: Any, lane: Any) -> Any:
        """Emit the loads of a lane's codes of the tile at ``shared[base]`` and return their registers."""
        raw = local("raw", self.lane_words, "uint32")
        for first in range(0, self.lane_words, CHUNK):
            read_chunk(raw, first, shared, base + 32 * first + lane * CHUNK)
        return raw

    def read_group(self, shared: Any, base: Any, part: int, lane: Any) -> tuple[Any, Any]:
        """Emit the loads of a lane's two scales, as float32, and two zero points, as ``decode`` takes them."""
        pair = self._read_scales(shared, base, part, lane)
        return floats_of(pair), self._read_zeros(shared, base, part, lane)

    def read_group_to_scale(self, shared: Any, base: Any, part: int, lane: Any) -> tuple[Any, Any]:
        """``read_group`` with the scales as ``decode_sixteen`` takes them."""
        pair = self._read_scales(shared, base, part, lane)
        return self.format.scales(pair), self._read_zeros(shared, base, part, lane)

    def _read_scales(self, shared: Any, base: Any, part: int, lane: Any) -> Any:
        pair = local("scale_pair", 1, "uint32")
        T.buffer_store(pair, shared[base + self.scales_at(part) + lane // 4], [0])
        return pair

    def _read_zeros(self, shared: Any, base: Any, part: int, lane: Any) -> Any:
        packed = local("zero_pair", 1, "uint32")
        word = shared[base + self.scales_at(part) + SCALE_WORDS + lane // 8]
        T.buffer_store(packed, word >> T.Cast("uint32", lane // 4 % 2 * 16), [0])
        return self.format.zeros(packed)

    def decode(self, raw: Any, half: int, zeros: Any) -> Any:
        """Emit the decoding of half a block; returns eight registers, 4 j + i is register i of the fragment j.

        Args:
            raw: from ``read_codes``.
            half: which half.
            zeros: from ``read_group``.
        """
        into = local("w", 8, "uint32")
        for j in range(2):
            self.decode_sixteen(into, 4 * j, raw, 2 * half + j, zeros)
        return into

    def decode_sixteen(
        self, into: Any, at: int, raw: Any, number: int, zeros: Any, scales: Any = None
    ) -> None:
        """Emit ``into[at], ...`` = the four registers of 16 k of a block: q - z, or times the scales.

        Args:
            into: registers.
            at: where in it.
            raw: from ``read_codes``.
            number: which 16 of the 64.
            zeros: from ``read_group``.
            scales: from ``read_group_to_scale``, if they are to be multiplied in.
        """
        count = self.lane_words // 4
        words = [raw[count * number + a] for a in range(count)]
        if scales is None:
            self.format.pairs(into, at, words, zeros)
        else:
            self.format.scaled(into, at, words, zeros, scales)

    def group_of(self, block: Any, part: Any) -> Any:
        """The group of a part of a block of k."""
        if self.sums_per_block == 1:
            return block // (self.spec.group_size // BLOCK_K)
        return (block * 2 + part) // (self.spec.group_size // HALF_K)

    def scales_at(self, part: Any) -> Any:
        """Where a tile's scales of a part lie in shared memory, in words behind its codes' first."""
        return 32 * self.lane_words + part * (GROUP_BYTES // 4)


def read_chunk(into: Any, at: int, shared: Any, place: Any) -> None:
    """Emit one load of 16 bytes of shared memory to four registers."""
    with T.vectorized(0, CHUNK) as i:
        T.buffer_store(into, shared[place + i], [at + i])
