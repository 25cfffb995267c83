"""The integer family's tiles on AArch64: sdot, and usdot where there is i8mm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.dot_matmul import AHEAD, DotConfig, Tile
from awq_tvm.schedules.cpu.rules import DotMatmulRule
from awq_tvm.schedules.rule import register

if TYPE_CHECKING:
    from awq_tvm.targets import Target


def one_digit(target: Target) -> DotConfig:
    """A block of 16 outputs takes four q registers: 16 of 32 hold the sums of 4 rows."""
    return DotConfig(
        registers=8,
        planes=1,
        one_row=Tile(1, 2, ahead=AHEAD),
        few_rows=Tile(4, 1, ahead=AHEAD),
        many_rows=Tile(4, 1),
    )


def three_digits(target: Target) -> DotConfig:
    """Three sums of four q registers for each row and block: a second row would spill."""
    return DotConfig(
        registers=8,
        planes=3,
        one_row=Tile(1, 1, ahead=AHEAD),
        few_rows=Tile(1, 1, ahead=AHEAD),
        many_rows=Tile(1, 1),
    )


register("arm", DotMatmulRule("arm.int8", "int8", one_digit))
# For 32 codes float32 takes 32 instructions to decode and multiply, three digits take 9.
register("arm", DotMatmulRule("arm.float_digits", "float", three_digits))
