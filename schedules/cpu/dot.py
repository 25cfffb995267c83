"""The four-way dot product of bytes: sums[j] += sum over b < 4 of codes[4 j + b] * x[4 j + b]."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.vectors import LANES, Expression, splat, take

Dot = Callable[[Expression, Expression, Expression], Expression]
"""(sums int32x16, codes int32x16 holding 64 unsigned bytes, x int32x16 holding 64 signed bytes) -> sums."""


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
    width = int(sums.ty.dtype.rpartition("x")[2])
    pairs_of_bytes, pairs = _MADDUBS[width]
    words = T.call_llvm_pure_intrin(
        f"int16x{2 * width}",
        pairs_of_bytes,
        T.reinterpret(f"uint8x{4 * width}", codes),
        T.reinterpret(f"int8x{4 * width}", x),
    )
    ones = splat(1, "int16", 2 * width)
    return sums + T.call_llvm_pure_intrin(f"int32x{width}", pairs, words, ones)


_MADDUBS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}


def _by_nibbles(dot: Dot) -> Dot:
    """Codes of 8 bits by a dot product that takes fewer: the low four bits, and the high four times 16."""

    def whole(sums: Expression, codes: Expression, x: Expression) -> Expression:
        mask, nothing = splat(0x0F0F0F0F, "int32"), splat(0, "int32")
        high = dot(nothing, T.bind(T.bitwise_and(codes >> splat(4, "int32"), mask)), x)
        return dot(sums, T.bind(T.bitwise_and(codes, mask)), x) + (high << splat(4, "int32"))

    return whole


_INSTRUCTIONS: tuple[tuple[frozenset[str], int, Dot], ...] = (
    (frozenset({"avx512vnni", "avx512f"}), 8, _vpdpbusd_512),
    (frozenset({"avxvnni"}), 8, _in_parts(8, _vpdpbusd_256)),
    (frozenset({"i8mm"}), 8, _in_parts(4, _usdot)),
    # Signed times signed: right for codes below 128 only.
    (frozenset({"dotprod"}), 7, _in_parts(4, _sdot)),
    (frozenset({"dotprod"}), 8, _by_nibbles(_in_parts(4, _sdot))),
    (frozenset({"avx512bw"}), 7, _maddubs),
    (frozenset({"avx512bw"}), 8, _by_nibbles(_maddubs)),
    (frozenset({"avx2"}), 7, _in_parts(8, _maddubs)),
    (frozenset({"avx2"}), 8, _by_nibbles(_in_parts(8, _maddubs))),
)
"""Features needed, the widest code in bits, and the instructions; the best first."""


ONE_INSTRUCTION = frozenset({"avx512vnni", "avxvnni", "dotprod", "i8mm"})
"""Features that do it in one instruction: three digits are faster than floats only there."""


def dot_product(features: Iterable[str], bits: int) -> Dot | None:
    """The best instruction that the features allow for unsigned codes of ``bits`` bits, or None."""
    available = frozenset(features)
    for needed, widest, dot in _INSTRUCTIONS:
        if needed <= available and bits <= widest:
            return dot
    return None
