"""The float32 family's tiles on x86-64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.dot_matmul import DotConfig, Tile
from awq_tvm.schedules.cpu.float_matmul import FloatConfig
from awq_tvm.schedules.cpu.rules import FloatMatmulRule
from awq_tvm.schedules.rule import register

if TYPE_CHECKING:
    from awq_tvm.targets import Target


def config(target: Target) -> FloatConfig:
    """32 zmm registers hold 8 rows x 48 columns, 16 ymm registers 6 rows x 16 columns."""
    if "avx512f" not in target.features:
        return FloatConfig(
            registers=8, use_lookup=False, gemv_blocks=1, gemv_sums=4, tile_rows=6, tile_blocks=1, rows_at_once=126
        )
    return FloatConfig(
        registers=32,
        use_lookup=True,
        gemv_blocks=2,
        gemv_sums=4,
        tile_rows=8,
        tile_blocks=3,
        few_rows=_three_digits() if "avx512vnni" in target.features else None,
    )


def _three_digits() -> DotConfig:
    # For one row the byte dot products take 9 instructions for 64 bytes of weights, the float path 23.
    return DotConfig(
        registers=32, planes=3, one_row=Tile(1, 2), few_rows=Tile(4, 2), many_rows=Tile(4, 2)
    )


register("x86", FloatMatmulRule("x86.float", config))
