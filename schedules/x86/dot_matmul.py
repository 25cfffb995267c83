"""The integer family's tiles on x86-64: AVX-512 and AVX2, with VNNI and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.dot_matmul import AHEAD, DotConfig, Tile
from awq_tvm.schedules.cpu.rules import DotMatmulRule
from awq_tvm.schedules.rule import register

if TYPE_CHECKING:
    from awq_tvm.targets import Target

DECODE_ONCE_FROM = 64
"""Rows from which writing decoded codes to a cache takes less than decoding them again, with AVX-512."""


def one_digit(target: Target) -> DotConfig:
    """16 of 32 zmm registers for sums, or 8 of 16 ymm registers.

    Two blocks are read as they lie in memory, one behind the other. A third would come from elsewhere, and save a
    tile of eight rows one broadcast in three, which its dot products hide.
    """
    if "avx512bw" in target.features:
        return DotConfig(
            registers=32,
            planes=1,
            one_row=Tile(1, 2, sums=2, ahead=AHEAD),
            few_rows=Tile(8, 2, ahead=AHEAD),
            many_rows=Tile(8, 2, ahead=AHEAD),
            decode_once_from=DECODE_ONCE_FROM,
        )
    return DotConfig(
        registers=8,
        planes=1,
        one_row=Tile(1, 2, ahead=AHEAD),
        few_rows=Tile(4, 1, ahead=AHEAD),
        many_rows=Tile(4, 1, ahead=AHEAD),
    )


def three_digits(target: Target) -> DotConfig:
    """As ``one_digit``, three sums for each row and block."""
    if "avx512bw" in target.features:
        return DotConfig(
            registers=32,
            planes=3,
            one_row=Tile(1, 2, ahead=AHEAD),
            few_rows=Tile(4, 2, ahead=AHEAD),
            many_rows=Tile(4, 2, ahead=AHEAD),
            decode_once_from=0,
        )
    return DotConfig(
        registers=8,
        planes=3,
        one_row=Tile(1, 1, ahead=AHEAD),
        few_rows=Tile(2, 1, ahead=AHEAD),
        many_rows=Tile(2, 1, ahead=AHEAD),
    )


register("x86", DotMatmulRule("x86.int8", "int8", one_digit))
register("x86", DotMatmulRule("x86.float_digits", "float", three_digits))
