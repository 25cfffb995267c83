"""Metal: the portable GPU kernels, asked last so that faster families go first."""

from __future__ import annotations

from awq_tvm.schedules.gpu.matmul import GpuMatmulRule
from awq_tvm.schedules.rule import register

METAL_MATMUL = GpuMatmulRule("metal_simd_matmul", version=1)

register("metal", METAL_MATMUL)
