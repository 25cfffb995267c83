"""CUDA: the portable GPU kernels, asked last so that faster families go first."""

from __future__ import annotations

from awq_tvm.schedules.gpu.matmul import GpuMatmulRule
from awq_tvm.schedules.rule import register

CUDA_MATMUL = GpuMatmulRule("cuda_simt_matmul", version=1)

register("cuda", CUDA_MATMUL)
