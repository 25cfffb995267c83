"""How a lane's codes become the left operand of `mma`: q - z exactly, two to a register.

A code becomes a number by its bits: behind the leading byte of a power of two whose mantissa has room for it, it is
that power plus the code, and one subtraction leaves q - z. (The bit trick is that of Kim et al., arXiv:2211.10017.)

- float16 has ten bits of mantissa: 0x6400 | q is 1024 + q, and 0x6400 | q << 4 is 1024 + 16 q, of which an fma by
  1/16 makes q - z. So four codes of 4 bits take a mask each and one shift for every two; wider codes are spread by
  byte permutes.
- bfloat16 has seven: 0x4300 | q is 128 + q for codes of up to 4 bits, which takes a shift for each pair of codes.
  Wider codes go through float32: 0x4b000000 | q is 2 ** 23 + q. What is left, at most 8 bits and a sign, is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec

BROAD_BITS = 4
"""The widest codes of which a byte holds two."""


class Codes(Protocol):
    """Decodes what a lane holds of one tile: two rows of outputs, whose codes take turns.

    Words are as the `mma_fragments` layout has them: nibbles of a 16-bit half in turn of the one row and the other,
    or for codes of more than 4 bits two bytes of the one and two of the other.
    """

    def zeros(self, packed: Any) -> Any:
        """Emit two registers, of each row what ``pairs`` takes its zero point as.

        Args:
            packed: a register whose lowest two bytes are the zero points.
        """

    def pairs(self, into: Any, at: int, words: list[Any], zeros: Any) -> None:
        """Emit ``into[at], ...`` = four registers of q - z: k of the first row, of the second, and k + 8 of both.

        Args:
            into: registers.
            at: where in it.
            words: the one register of codes of up to 4 bits, or the two of wider ones.
            zeros: from ``zeros``.
        """

    def scales(self, pair: Any) -> Any:
        """Emit registers of what ``scaled`` takes the two rows' scales as.

        Args:
            pair: a register of two float16.
        """

    def scaled(self, into: Any, at: int, words: list[Any], zeros: Any, scales: Any) -> None:
        """``pairs`` times the scales, each rounded once: (q - z) * scale as it is dequantized.

        Args:
            into: registers.
            at: where in it.
            words: as ``pairs`` takes them.
            zeros: from ``zeros``.
            scales: from ``scales``.
        """


def codes_for(spec: MatmulSpec) -> Codes:
    """What decodes the weight of a linear, into numbers of its ``dtype``."""
    wide = spec.bits > BROAD_BITS
    if spec.dtype == "bfloat16":
        return _WideBfloat16() if wide else _Bfloat16()
    return _WideFloat16() if wide else _Float16()


class _Halves(ABC):
    """What is the same for codes of any width."""

    def scales(self, pair: Any) -> Any:
        scales = local("scale_twice", 2, "uint32")
        for row, selector in enumerate((0x1010, 0x3232)):
            ptx.permute_bytes(scales[row], pair[0], 0, selector)
        return scales

    def scaled(self, into: Any, at: int, words: list[Any], zeros: Any, scales: Any) -> None:
        self.pairs(into, at, words, zeros)
        for i in range(4):
            ptx.multiply_halves(into[at + i], into[at + i], scales[i % 2])

    @abstractmethod
    def pairs(self, into: Any, at: int, words: list[Any], zeros: Any) -> None: ...


class _Float16(_Halves):
    def zeros(self, packed: Any) -> Any:
        zeros = local("zero", 2, "uint32")
        _behind(zeros[0], packed[0], 0x64, 0)
        # 64 + z in float16 is 0x5400 | z << 4.
        ptx.permute_bytes(zeros[1], packed[0], 0, 0x4141)
        T.buffer_store(zeros, (zeros[1] << T.uint32(4)) | T.uint32(0xD400D400), [1])
        return zeros

    def pairs(self, into: Any, at: int, words: list[Any], zeros: Any) -> None:
        word = local("word", 1, "uint32")
        T.buffer_store(word, words[0], [0])
        for a in range(2):
            if a:
                T.buffer_store(word, word[0] >> T.uint32(8), [0])
            low, high = into[at + 2 * a], into[at + 2 * a + 1]
            ptx.and_or(low, word[0], 0x000F000F, 0x64006400)
            ptx.subtract_halves(low, low, zeros[0])
            ptx.and_or(high, word[0], 0x00F000F0, 0x64006400)
            ptx.fma_halves(high, high, T.uint32(0x2C002C00), zeros[1])


class _WideFloat16(_Halves):
    def zeros(self, packed: Any) -> Any:
        zeros = local("zero", 2, "uint32")
        for row in range(2):
            _behind(zeros[row], packed[0], 0x64, row)
        return zeros

    def pairs(self, into: Any, at: int, words: list[Any], zeros: Any) -> None:
        for a, word in enumerate(words):
            for row, selector in enumerate((0x4140, 0x4342)):
                register = into[at + 2 * a + row]
                ptx.permute_bytes(register, word, 0x64646464, selector)
                ptx.subtract_halves(register, register, zeros[row])


class _Bfloat16:
    def zeros(self, packed: Any) -> Any:
        zeros = local("zero", 2, "uint32")
        for row in range(2):
            _behind(zeros[row], packed[0], 0xC3, row)
        return zeros

    def pairs(self, into: Any, at: int, words: list[Any], zeros: Any) -> None:
        word = local("word", 1, "uint32")
        T.buffer_store(word, words[0], [0])
        for i in range(4):
            if i:
                T.buffer_store(word, word[0] >> T.uint32(4), [0])
            ptx.and_or(into[at + i], word[0], 0x000F000F, 0x43004300)
            # There is a subtraction of pairs only from compute capability 9.0 on.
            ptx.fma_bfloats(into[at + i], into[at + i], T.uint32(0x3F803F80), zeros[i % 2])

    def scales(self, pair: Any) -> Any:
        # Eleven bits of a scale are eight and three: the product of a difference of four bits with the three is exact
        # and so is added to that with the eight before anything is rounded.
        scales = local("scale_parts", 4, "uint32")
        whole = floats_of(pair)
        for row in range(2):
            ptx.pack_bfloats(scales[row], whole[row], whole[row])
            high = T.reinterpret("float32", T.bitwise_and(scales[row], T.uint32(0xFFFF0000)))
            T.buffer_store(whole, whole[row] - high, [row])
            ptx.pack_bfloats(scales[2 + row], whole[row], whole[row])
        return scales

    def scaled(self, into: Any, at: int, words: list[Any], zeros: Any, scales: Any) -> None:
        self.pairs(into, at, words, zeros)
        low = local("low", 1, "uint32")
        for i in range(4):
            ptx.fma_bfloats(low[0], into[at + i], scales[2 + i % 2], T.uint32(0x80008000))
            ptx.fma_bfloats(into[at + i], into[at + i], scales[i % 2], low[0])


class _WideBfloat16:
    def zeros(self, packed: Any) -> Any:
        zeros = local("zero", 2, "uint32")
        for row in range(2):
            _as_float(zeros[row], packed[0], row)
        return zeros

    def pairs(self, into: Any, at: int, words: list[Any], zeros: Any) -> None:
        self._pairs(into, at, words, zeros, None)

    def scales(self, pair: Any) -> Any:
        return floats_of(pair)

    def scaled(self, into: Any, at: int, words: list[Any], zeros: Any, scales: Any) -> None:
        # Twenty bits at most: exact in float32.
        self._pairs(into, at, words, zeros, scales)

    def _pairs(self, into: Any, at: int, words: list[Any], zeros: Any, scales: Any) -> None:
        bits = local("code_bits", 2, "uint32")
        code = local("code", 2, "float32")
        for a, word in enumerate(words):
            for row in range(2):
                for i in range(2):
                    _as_float(bits[i], word, 2 * row + i)
                    value = T.reinterpret("float32", bits[i]) - T.reinterpret("float32", zeros[row])
                    T.buffer_store(code, value if scales is None else value * scales[row], [i])
                ptx.pack_bfloats(into[at + 2 * a + row], code[0], code[1])


def floats_of(pair: Any) -> Any:
    """Emit two registers of float32, given one of two float16."""
    found = local("scale", 2, "float32")
    for u in range(2):
        bits = T.Cast("uint16", pair[0] >> T.uint32(16 * u))
        T.buffer_store(found, T.Cast("float32", T.reinterpret("float16", bits)), [u])
    return found


def _behind(register: Any, packed: Any, leading: int, byte: int) -> None:
    """Emit a register of twice the number ``leading << 8 | byte``, given which byte of ``packed``."""
    ptx.permute_bytes(register, packed, 0x01010101 * leading, 0x4040 + 0x0101 * byte)


def _as_float(register: Any, packed: Any, byte: int) -> None:
    """Emit the bits of 2 ** 23 + a byte of ``packed`` in float32."""
    ptx.permute_bytes(register, packed, 0x4B000000, 0x7540 + byte)
