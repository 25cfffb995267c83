"""Reading codes, scales and zero points of the row layout on a GPU, as wide as alignment allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.spec import MatmulSpec

WORD_BITS = 32


def local(name: str, length: int, dtype: str) -> Any:
    """A named array in a thread's registers."""
    return IRBuilder.name(name, T.alloc_buffer((length,), dtype, scope="local"))


@dataclass(frozen=True)
class CodeReader:
    """How many neighbouring codes of a row one thread reads at once, and how.

    A run of ``codes`` never straddles two groups, and its bytes are aligned to their own number, so that up
    to 16 of them are one load.

    Attributes:
        storage_bits: bits that a code takes in memory: 4 for codes of up to 4 bits, else 8.
        codes: codes of one run, a power of two.
    """

    storage_bits: int
    codes: int

    @classmethod
    def widest(cls, spec: MatmulSpec, limit: int) -> CodeReader:
        """The longest run of at most ``limit`` codes and 16 bytes for the spec."""
        storage_bits = 4 if spec.bits <= 4 else 8
        most = min(limit, 128 // storage_bits)
        return cls(storage_bits, math.gcd(most, spec.group_size))

    @property
    def words(self) -> int:
        """32-bit words of a run, 0 where a run is shorter than a word and is read byte by byte."""
        return self.codes * self.storage_bits // WORD_BITS

    def view(self, qweight: Any) -> Any:
        """The codes as the reader reads them: 32-bit words, or the bytes themselves for short runs."""
        if self.words == 0:
            return qweight
        rows, row_bytes = qweight.shape
        shape = (rows, T.int64(int(row_bytes) * 8 // WORD_BITS))
        return IRBuilder.name("codes", T.decl_buffer(shape, "uint32", data=qweight.data))

    def load(self, view: Any, row: Any, run: Any) -> Callable[[int], Any]:
        """Emit the load of one run and return its decoder.

        Args:
            view: what ``view`` returned.
            row: n.
            run: which run of the row, k = run * codes and on.

        Returns:
            A function from i in [0, codes) to the uint32 code at k = run * codes + i.
        """
        unit = WORD_BITS if self.words else 8
        count = max(1, self.codes * self.storage_bits // unit)
        raw = local("raw", count, "uint32")
        if self.words > 1:
            with T.vectorized(0, count) as j:
                T.buffer_store(raw, view[row, run * count + j], [j])
        elif self.words == 1:
            T.buffer_store(raw, view[row, run], [0])
        else:
            for j in range(count):
                # A run of one nibble starts in either half of its byte.
                byte = run // 2 if self.codes * self.storage_bits < 8 else run * count + j
                T.buffer_store(raw, T.Cast("uint32", view[row, byte]), [j])
        mask = T.uint32((1 << self.storage_bits) - 1)

        def code(i: int) -> Any:
            if self.codes * self.storage_bits < 8:
                return (raw[0] >> T.Cast("uint32", run % 2 * 4)) & mask
            at, shift = divmod(i * self.storage_bits, unit)
            return (raw[at] >> T.uint32(shift)) & mask

        return code


def load_activations(x: Any, token: Any, first: Any, into: Any, at: int, count: int, aligned: int) -> None:
    """Emit ``into[at + i] = x[token, first + i]`` for i in [0, count).

    Args:
        x: [M, K].
        token: the row.
        first: the first k, a multiple of the largest power of two that divides ``count``.
        into: register array of x's dtype.
        at: where in it.
        count: how many.
        aligned: a power of two that divides K and ``first``; loads are at most this many elements wide.
    """
    # Metal has no vectors longer than 4.
    width = math.gcd(math.gcd(aligned, count), 4)
    for start in range(0, count, width):
        if width == 1:
            T.buffer_store(into, x[token, first + start], [at + start])
        else:
            with T.vectorized(0, width) as j:
                T.buffer_store(into, x[token, first + start + j], [at + start + j])
