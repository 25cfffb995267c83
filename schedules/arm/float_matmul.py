"""The float32 family's tiles on AArch64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.float_matmul import FloatConfig
from awq_tvm.schedules.cpu.rules import FloatMatmulRule
from awq_tvm.schedules.rule import register

if TYPE_CHECKING:
    from awq_tvm.targets import Target


def config(target: Target) -> FloatConfig:
    """32 q registers of 4 lanes hold 6 rows x 16 columns of sums and leave room for a row of weights."""
    return FloatConfig(
        registers=8,
        use_lookup=False,
        gemv_blocks=1,
        gemv_sums=4,
        tile_rows=6,
        tile_blocks=1,
        rows_at_once=126,
    )


register("arm", FloatMatmulRule("arm.float", config))
