"""Codes of the `simdgroup_rows` layout in a thread's registers: words from memory, decoded in pairs.

A code q becomes float16 by its bits, not by a conversion, of which Apple's GPUs do one where they do four other
instructions: 0x6400 | q is 1024 + q and 0x6400 | q << 4 is 1024 + 16 q, so that a mask, an or and one float16
instruction a code give q - z, exactly. (The bit trick is that of Kim et al., arXiv:2211.10017.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.metal.config import QUAD
from awq_tvm.schedules.spec import MatmulSpec

PIECE = 8
"""k that are decoded together: two float16 vectors of four."""

_BIAS = 0x64006400
_WORD_BYTES = 4
_VECTOR = 4


class Group(NamedTuple):
    """Registers that hold, of some outputs and one group: scales, and what decoding takes away, 1024 or 64 + z."""

    scales: Any
    by_one: Any
    by_sixteen: Any


class Codes:
    """The weight of one linear.

    Args:
        spec: the linear.
        arguments: the kernel's buffers by name.
    """

    def __init__(self, spec: MatmulSpec, arguments: dict[str, Any]) -> None:
        self.spec = spec
        self.wide = spec.bits > 4
        self.rows = -(-spec.out_features // QUAD) * QUAD
        """Outputs that are stored: those past N have scale 0."""
        qweight = arguments["qweight"]
        words = spec.in_features // PIECE * self.words
        self._codes = IRBuilder.name("codes", T.decl_buffer((self.rows, words), "uint32", data=qweight.data))
        by_group = (self.rows * spec.groups,)
        self._scales, self._zeros = (
            IRBuilder.name(f"{name}_flat", T.decl_buffer(by_group, array.dtype, data=array.data))
            for name, array in (("scales", arguments["scales"]), ("zeros", arguments["zeros"]))
        )

    @property
    def words(self) -> int:
        """32-bit words of a piece."""
        return 2 if self.wide else 1

    def load(self, raw: Any, at: int, row: Any, piece: Any, pieces: int) -> None:
        """Emit the loads of some pieces of a row into ``raw[at]`` and on, 16 bytes at a time where there are as many.

        Args:
            raw: uint32 registers.
            at: where in them.
            row: n.
            piece: the first, a multiple of ``pieces``.
            pieces: how many, a power of two.
        """
        count = pieces * self.words
        width = min(count, _VECTOR)
        for start in range(0, count, width):
            first = piece * self.words + start
            if width == 1:
                T.buffer_store(raw, self._codes[row, first], [at + start])
            else:
                value = self._codes[row, T.Ramp(first, 1, width)]
                T.buffer_store(raw, value, [T.Ramp(at + start, 1, width)])

    def group(self, row: Any, group: Any, rows: int) -> Group:
        """Emit the loads of the scales and zero points of ``rows`` outputs of a quad from ``row``."""
        at = (row // QUAD * self.spec.groups + group) * QUAD + row % QUAD
        index: Any = at if rows == 1 else T.Ramp(at, 1, rows)
        place: Any = 0 if rows == 1 else T.Ramp(0, 1, rows)
        scales = local("scale", rows, "float16")
        T.buffer_store(scales, self._scales[index], [place])
        zeros = T.Cast("float16" if rows == 1 else f"float16x{rows}", self._zeros[index])
        by_one, by_sixteen = local("by_one", rows, "float16"), local("by_sixteen", rows, "float16")
        for into, bias in ((by_one, 1024), (by_sixteen, 64)):
            number = T.float16(bias)
            T.buffer_store(into, (number if rows == 1 else T.Broadcast(number, rows)) + zeros, [place])
        return Group(scales, by_one, by_sixteen)

    def decode(self, raw: Any, at: int, group: Group, r: int) -> list[Any]:
        """Emit the decoding of the piece whose words begin at ``raw[at]``.

        Args:
            raw: what ``load`` filled.
            at: where in it.
            group: scales and zero points.
            r: which output of them.

        Returns:
            The eight q - z in the order of k, as four float16x2.
        """
        by_one, by_sixteen = T.Broadcast(group.by_one[r], 2), T.Broadcast(group.by_sixteen[r], 2)
        sixteenth = T.Broadcast(T.float16(1 / 16), 2)
        found = []
        for word in range(at, at + self.words):
            for codes in (raw[word], raw[word] >> T.uint32(8)):
                if self.wide:
                    found.append(_biased(codes, 0x00FF00FF) - by_one)
                else:
                    found.append(_biased(codes, 0x000F000F) - by_one)
                    found.append(_biased(codes, 0x00F000F0) * sixteenth - by_sixteen)
        pairs = local("pairs", PIECE, "float16")
        for i, pair in enumerate(found):
            T.buffer_store(pairs, pair, [T.Ramp(2 * i, 1, 2)])
        return [pairs[T.Ramp(2 * i, 1, 2)] for i in range(len(found))]


def _biased(word: Any, mask: int) -> Any:
    """Two codes of a word as float16, 1024 and more."""
    return T.reinterpret("float16x2", (word & T.uint32(mask)) | T.uint32(_BIAS))
