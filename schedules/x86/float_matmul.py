"""The float32 family's tiles on x86-64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.float_matmul import FloatConfig
from awq_tvm.schedules.cpu.rules import FloatMatmulRule
from awq_tvm.schedules.rule import register

if TYPE_CHECKING:
    from awq_tvm.targets import Target


def config(target: Target) -> FloatConfig:
    """32 zmm registers hold 8 rows x 48 columns, 16 ymm registers 6 rows x 16 columns."""
    if "avx512f" in target.features:
        return FloatConfig(
            registers=32, use_lookup=True, gemv_blocks=2, gemv_sums=4, tile_rows=8, tile_blocks=3
        )
    return FloatConfig(
        registers=8,
        use_lookup=False,
        gemv_blocks=1,
        gemv_sums=4,
        tile_rows=6,
        tile_blocks=1,
        rows_at_once=126,
    )


register("x86", FloatMatmulRule("x86.float", config))
