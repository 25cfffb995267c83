"""Metal: SIMD-group matrices where the linear allows, else the portable GPU kernels."""

from __future__ import annotations

from awq_tvm.schedules.gpu.matmul import GpuMatmulRule
from awq_tvm.schedules.metal.simdgroup import SimdgroupRule
from awq_tvm.schedules.rule import register

METAL_MATMUL = GpuMatmulRule("metal_simd_matmul", version=1)

register("metal", SimdgroupRule())
register("metal", METAL_MATMUL)
