"""Which attention kernels a GPU gets."""

from __future__ import annotations

from tvm import tirx
from tvm.target import Target

from awq_tvm.schedules.attention.gpu.config import default_decode_config, default_tensor_config
from awq_tvm.schedules.attention.gpu.decode import decode_paged
from awq_tvm.schedules.attention.gpu.lanes import WARP
from awq_tvm.schedules.attention.gpu.simdgroup_prefill import (
    simdgroup_prefill_paged,
    simdgroup_prefill_ragged,
)
from awq_tvm.schedules.attention.gpu.simdgroup_prefill_config import (
    MOST_FEATURES as MOST_SIMDGROUP_FEATURES,
)
from awq_tvm.schedules.attention.gpu.simdgroup_prefill_config import (
    ThreadgroupPlan,
    default_simdgroup_config,
)
from awq_tvm.schedules.attention.gpu.tensor_decode import LEAST_ARCH, MOST_FEATURES, tensor_decode_paged
from awq_tvm.schedules.attention.gpu.tensor_prefill import tensor_prefill_paged, tensor_prefill_ragged
from awq_tvm.schedules.attention.gpu.tensor_prefill_config import FEATURES, default_prefill_config
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.targets.cuda import SHARED_MEMORY_BYTES


def decode_on_gpu(shape: AttentionShape, target: Target, cores: int | None) -> tirx.PrimFunc:
    """The kernel with tensor cores where there are any that fit, else the one for lanes.

    Args:
        shape: of the attention.
        target: CUDA or Metal.
        cores: its SMs or GPU cores; None where they are unknown.
    """
    if has_tensor_kernel(shape, target):
        return tensor_decode_paged(shape, default_tensor_config(shape, cores))
    return decode_paged(shape, target, default_decode_config(shape, target.kind.name, cores))


def prefill_on_gpu(shape: AttentionShape, target: Target) -> tuple[tirx.PrimFunc, tirx.PrimFunc] | None:
    """The kernels for new tokens against one another and against the cache; None where TVM's have to do.

    Args:
        shape: of the attention.
        target: CUDA or Metal.
    """
    if has_tensor_prefill(shape, target):
        arch = str(target.attrs["arch"]).rstrip("af")
        config = default_prefill_config(shape, SHARED_MEMORY_BYTES.get(arch, SHARED_MEMORY_BYTES["sm_86"]))
        return tensor_prefill_ragged(shape, config), tensor_prefill_paged(shape, config)
    if has_simdgroup_prefill(shape, target):
        sizes = default_simdgroup_config(shape)
        return simdgroup_prefill_ragged(shape, sizes), simdgroup_prefill_paged(shape, sizes)
    return None


def has_tensor_prefill(shape: AttentionShape, target: Target) -> bool:
    """Whether there are kernels for many tokens on tensor cores."""
    return has_tensor_kernel(shape, target) and shape.head_dim % FEATURES == 0


def has_simdgroup_prefill(shape: AttentionShape, target: Target) -> bool:
    """Whether there are kernels for many tokens on SIMD groups, and room for what a threadgroup shares."""
    if target.kind.name != "metal" or shape.dtype != "float16" or shape.head_dim > MOST_SIMDGROUP_FEATURES:
        return False
    room = int(target.attrs["max_shared_memory_per_block"])
    needed = ThreadgroupPlan(shape, default_simdgroup_config(shape)).total
    return int(target.attrs["thread_warp_size"]) == WARP and needed <= room


def has_tensor_kernel(shape: AttentionShape, target: Target) -> bool:
    """Whether decoding runs on tensor cores."""
    if target.kind.name != "cuda" or shape.dtype == "float32" or shape.head_dim > MOST_FEATURES:
        return False
    arch = str(target.attrs["arch"]).removeprefix("sm_").rstrip("af")
    return int(arch) >= LEAST_ARCH
