"""CUDA: what Hopper alone has, tensor cores where the GPU and the linear allow, else the portable GPU kernels."""

from __future__ import annotations

from awq_tvm.schedules.cuda.hopper import HopperRule
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.gpu.matmul import GpuMatmulRule
from awq_tvm.schedules.rule import register

CUDA_MATMUL = GpuMatmulRule("cuda_simt_matmul", version=1)

register("cuda", HopperRule())
register("cuda", TensorCoreRule())
register("cuda", CUDA_MATMUL)
