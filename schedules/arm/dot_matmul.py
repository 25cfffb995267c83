"""The integer family's tiles on AArch64: sdot; where there is i8mm, usdot and for many rows usmmla."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.dot_matmul import AHEAD, DotConfig, Tile
from awq_tvm.schedules.cpu.rules import DotMatmulRule
from awq_tvm.schedules.rule import register

if TYPE_CHECKING:
    from awq_tvm.targets import Target


def one_digit(target: Target) -> DotConfig:
    """A block of 16 outputs takes four q registers: 16 of 32 hold the sums of 4 rows, 24 those of 6.

    usmmla needs no broadcasts and so leaves room for 6 rows.
    """
    dots = DotConfig(
        registers=8,
        planes=1,
        one_row=Tile(1, 2, ahead=AHEAD),
        few_rows=Tile(4, 1, ahead=AHEAD),
        many_rows=Tile(4, 1, ahead=AHEAD),
    )
    return replace(dots, many_rows=Tile(6, 1), rows_at_once=132, matrix=True) if _matrix(target) else dots


def three_digits(target: Target) -> DotConfig:
    """Three sums of four q registers for each row and block: a second row would spill, except with usmmla."""
    dots = DotConfig(
        registers=8,
        planes=3,
        one_row=Tile(1, 1, ahead=AHEAD),
        few_rows=Tile(1, 1, ahead=AHEAD),
        many_rows=Tile(1, 1, ahead=AHEAD),
    )
    return replace(dots, many_rows=Tile(2, 1), matrix=True) if _matrix(target) else dots


def _matrix(target: Target) -> bool:
    return "i8mm" in target.features


register("arm", DotMatmulRule("arm.int8", "int8", one_digit))
# For 32 codes float32 takes 32 instructions to decode and multiply, three digits take 9.
register("arm", DotMatmulRule("arm.float_digits", "float", three_digits))
