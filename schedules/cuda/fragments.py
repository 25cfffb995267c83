"""Weights of the `mma_fragments` layout in a lane's registers: loads of 16 bytes, decoding without conversions.

A code q of up to 4 bits becomes float16 by its bits: 0x6400 | q is 1024 + q, 0x6400 | q << 4 is 1024 + 16 q, so
that one subtraction or one fma by 1/16 gives q - z, exactly. Four codes need no more than a mask each and a shift for
two; wider codes are spread by byte permutes. (The bit trick is that of Kim et al., arXiv:2211.10017.)
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

ROWS = 16
"""Outputs of a fragment."""

BLOCK_K = 64
"""k of a block of fragments."""

HALF_K = 32
"""k of half a block: the smallest group, and what one 16-byte load of x is a lane's part of."""

_BIAS = 0x6400
_SIXTEENTH = 0x2C002C00
_MINUS_64 = 0xD400D400


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
        self.wide = spec.bits > 4
        self.words = 8 if self.wide else 4
        self._scales = arguments["scales"]
        qweight, zeros = arguments["qweight"], arguments["zeros"]
        halves = 2 if self.wide else 1
        self._codes = IRBuilder.name(
            "codes",
            T.decl_buffer((self.tiles, self.blocks, halves, 32, 4), "uint32", data=qweight.data),
        )
        self._zeros = IRBuilder.name(
            "zero_pairs", T.decl_buffer((self.tiles, spec.groups, 8), "uint16", data=zeros.data)
        )

    def load(self, into: Any, at: int, tile: Any, block: Any, lane: Any) -> None:
        """Emit the load of a lane's codes of one tile and block into ``words`` registers from ``into[at]`` on."""
        for half in range(self.words // 4):
            registers = [into[at + 4 * half + i] for i in range(4)]
            ptx.load_streamed(registers, self._codes.ptr_to([tile, block, half, lane, 0]))

    def group_of(self, block: Any, half: int) -> Any:
        """The group of a half block."""
        if self.spec.group_size % BLOCK_K == 0:
            return block // (self.spec.group_size // BLOCK_K)
        return (block * 2 + half) // (self.spec.group_size // HALF_K)

    @property
    def halves_per_sum(self) -> int:
        """How many halves of a block are summed before the scale: both, where a group holds both."""
        return 2 if self.spec.group_size % BLOCK_K == 0 else 1

    def load_group(self, tile: Any, group: Any, lane: Any) -> tuple[Any, Any]:
        """Emit the loads of a lane's two scales, as float32, and two zero points, as `decode` takes them."""
        pair = local("scale_pair", 2, "float16")
        with T.vectorized(0, 2) as u:
            T.buffer_store(pair, self._scales[tile, group, lane // 4, u], [u])
        scales = local("scale", 2, "float32")
        for u in range(2):
            T.buffer_store(scales, T.Cast("float32", pair[u]), [u])
        packed = local("zero_pair", 1, "uint32")
        T.buffer_store(packed, T.Cast("uint32", self._zeros[tile, group, lane // 4]), [0])
        zeros = local("zero", 2, "uint32")
        ptx.permute_bytes(zeros[0], packed[0], 0x01010101 * (_BIAS >> 8), 0x4040)
        if self.wide:
            ptx.permute_bytes(zeros[1], packed[0], 0x01010101 * (_BIAS >> 8), 0x4141)
        else:
            # 64 + z in float16 is 0x5400 | z << 4.
            ptx.permute_bytes(zeros[1], packed[0], 0, 0x4141)
            T.buffer_store(zeros, (zeros[1] << T.uint32(4)) | T.uint32(_MINUS_64), [1])
        return scales, zeros

    def decode(self, into: Any, raw: Any, at: int, half: int, zeros: Any) -> None:
        """Emit ``into[4 j + i]`` = register i of the fragment j of a half block, q - z as float16 pairs.

        Args:
            into: eight registers.
            raw: what ``load`` filled.
            at: where in it.
            half: which half of the block.
            zeros: from ``load_group``.
        """
        for j in range(2):
            if self.wide:
                for a in range(2):
                    word = raw[at + 4 * half + 2 * j + a]
                    for u, selector in enumerate((0x4140, 0x4342)):
                        register = into[4 * j + 2 * a + u]
                        ptx.permute_bytes(register, word, 0x01010101 * (_BIAS >> 8), selector)
                        ptx.subtract_halves(register, register, zeros[u])
                continue
            word = local("word", 1, "uint32")
            T.buffer_store(word, raw[at + 2 * half + j], [0])
            for a in range(2):
                if a:
                    T.buffer_store(word, word[0] >> T.uint32(8), [0])
                low, high = into[4 * j + 2 * a], into[4 * j + 2 * a + 1]
                ptx.and_or(low, word[0], 0x000F000F, _BIAS << 16 | _BIAS)
                ptx.subtract_halves(low, low, zeros[0])
                ptx.and_or(high, word[0], 0x00F000F0, _BIAS << 16 | _BIAS)
                ptx.fma_halves(high, high, T.uint32(_SIXTEENTH), zeros[1])
