"""The four-way dot product of bytes: sums[j] += sum over b < 4 of codes[4 j + b] * x[4 j + b].

Where an instruction takes signed bytes, codes of 8 bits are stored less 128 (``SignedBlocksLayout``); codes of fewer
bits are the same bytes either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.vectors import LANES, Expression, splat, take

Dot = Callable[[Expression, Expression, Expression], Expression]
"""(sums int32x16, codes int32x16 holding 64 bytes, x int32x16 holding 64 signed bytes) -> sums."""


@dataclass(frozen=True)
class DotProduct:
    """What adds products of codes and activations.

    Args:
        add: the instructions.
        signed: they take codes of 8 bits less 128, as signed bytes.
        by_lane: they take four bytes of x from any lane of a register, so that one load serves 16 k.
    """

    add: Dot
    signed: bool = False
    by_lane: bool = False


def _in_parts(lanes: int, part: Dot) -> Dot:
    """Run a dot product of ``lanes`` lanes on each part of 16; LLVM makes the splitting free."""

    def whole(sums: Expression, codes: Expression, x: Expression) -> Expression:
        parts = []
        for start in range(0, LANES, lanes):
            indices = list(range(start, start + lanes))
            parts.append(part(take(sums, indices), take(codes, indices), take(x, indices)))
        return tirx.Shuffle(parts, [tirx.IntImm("int32", i) for i in range(LANES)])

    return whole


def _vpdpbusd_512(sums: Expression, codes: Expression, x: Expression) -> Expression:
    return T.call_llvm_pure_intrin(
        "int32x16",
        "llvm.x86.avx512.vpdpbusd.512",
        sums,
        T.reinterpret("uint8x64", codes),
        T.reinterpret("int8x64", x),
    )


def _vpdpbusd_256(sums: Expression, codes: Expression, x: Expression) -> Expression:
    return T.call_llvm_pure_intrin(
        "int32x8",
        "llvm.x86.avx512.vpdpbusd.256",
        sums,
        T.reinterpret("uint8x32", codes),
        T.reinterpret("int8x32", x),
    )


def _sdot(sums: Expression, codes: Expression, x: Expression) -> Expression:
    return T.call_llvm_pure_intrin(
        "int32x4",
        "llvm.aarch64.neon.sdot.v4i32.v16i8",
        sums,
        T.reinterpret("int8x16", codes),
        T.reinterpret("int8x16", x),
    )


def _usdot(sums: Expression, codes: Expression, x: Expression) -> Expression:
    return T.call_llvm_pure_intrin(
        "int32x4",
        "llvm.aarch64.neon.usdot.v4i32.v16i8",
        sums,
        T.reinterpret("uint8x16", codes),
        T.reinterpret("int8x16", x),
    )


def _maddubs(sums: Expression, codes: Expression, x: Expression) -> Expression:
    """Pairs of bytes to int16 with saturation, which 7-bit codes never reach, then pairs of these to int32."""
    return _add_pairs(sums, T.reinterpret(f"uint8x{4 * _width(sums)}", codes), x)


def _signed_maddubs(sums: Expression, codes: Expression, x: Expression) -> Expression:
    """The codes' magnitudes times x with the codes' signs: 2 * 128 * 127, the largest sum of a pair, fits int16.

    For x of -127 .. 127, whose sign can be changed.
    """
    count = 4 * _width(sums)
    signed, digits = T.bind(T.reinterpret(f"int8x{count}", codes)), T.reinterpret(f"int8x{count}", x)
    magnitudes = T.call_llvm_pure_intrin(f"int8x{count}", "llvm.abs", signed, tirx.const(False, "bool"))
    if count == 32:
        with_signs = T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", digits, signed)
    else:
        nothing = splat(0, "int8", count)
        with_signs = T.Select(signed < nothing, nothing - digits, digits)
    return _add_pairs(sums, T.reinterpret(f"uint8x{count}", magnitudes), with_signs)


def _width(sums: Expression) -> int:
    return int(sums.ty.dtype.rpartition("x")[2])


def _add_pairs(sums: Expression, unsigned: Expression, signed: Expression) -> Expression:
    width = _width(sums)
    pairs_of_bytes, pairs = _MADDUBS[width]
    words = T.call_llvm_pure_intrin(
        f"int16x{2 * width}", pairs_of_bytes, unsigned, T.reinterpret(f"int8x{4 * width}", signed)
    )
    ones = splat(1, "int16", 2 * width)
    return sums + T.call_llvm_pure_intrin(f"int32x{width}", pairs, words, ones)


_MADDUBS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}

_INSTRUCTIONS: tuple[tuple[frozenset[str], int, DotProduct], ...] = (
    (frozenset({"avx512vnni", "avx512f"}), 8, DotProduct(_vpdpbusd_512)),
    (frozenset({"avxvnni"}), 8, DotProduct(_in_parts(8, _vpdpbusd_256))),
    (frozenset({"i8mm"}), 8, DotProduct(_in_parts(4, _usdot), by_lane=True)),
    (frozenset({"dotprod"}), 8, DotProduct(_in_parts(4, _sdot), signed=True, by_lane=True)),
    (frozenset({"avx512bw"}), 7, DotProduct(_maddubs)),
    (frozenset({"avx512bw"}), 8, DotProduct(_signed_maddubs, signed=True)),
    (frozenset({"avx2"}), 7, DotProduct(_in_parts(8, _maddubs))),
    (frozenset({"avx2"}), 8, DotProduct(_in_parts(8, _signed_maddubs), signed=True)),
)
"""Features needed, the widest code in bits, and the instructions; the best first."""


ONE_INSTRUCTION = frozenset({"avx512vnni", "avxvnni", "dotprod", "i8mm"})
"""Features that do it in one instruction: three digits are faster than floats only there."""


def dot_product(features: Iterable[str], bits: int) -> DotProduct | None:
    """The best instructions that the features allow for codes of ``bits`` bits, or None."""
    available = frozenset(features)
    for needed, widest, dot in _INSTRUCTIONS:
        if needed <= available and bits <= widest:
            return dot
    return None
