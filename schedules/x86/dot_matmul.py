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
    """24 of 32 zmm registers for sums, or 8 of 16 ymm registers."""
    if "avx512bw" in target.features:
        return DotConfig(
            registers=32,
            planes=1,
            one_row=Tile(1, 2, sums=2, ahead=AHEAD),
            few_rows=Tile(4, 2, ahead=AHEAD),
            many_rows=Tile(8, 3),
            decode_once_from=DECODE_ONCE_FROM,
        )
    return DotConfig(
        registers=8,
        planes=1,
        one_row=Tile(1, 2, ahead=AHEAD),
        few_rows=Tile(4, 1, ahead=AHEAD),
        many_rows=Tile(4, 1),
    )


def three_digits(target: Target) -> DotConfig:
    """As ``one_digit``, three sums for each row and block."""
    if "avx512bw" in target.features:
        return DotConfig(
            registers=32,
            planes=3,
            one_row=Tile(1, 2, ahead=AHEAD),
            few_rows=Tile(4, 2, ahead=AHEAD),
            many_rows=Tile(4, 2),
            decode_once_from=0,
        )
    return DotConfig(
        registers=8,
        planes=3,
        one_row=Tile(1, 1, ahead=AHEAD),
        few_rows=Tile(2, 1, ahead=AHEAD),
        many_rows=Tile(2, 1),
    )


register("x86", DotMatmulRule("x86.int8", "int8", one_digit))
register("x86", DotMatmulRule("x86.float_digits", "float", three_digits))
