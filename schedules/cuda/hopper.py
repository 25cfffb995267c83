"""CUDA: the fused dequantize-matmul on Hopper, with products of warpgroups for many tokens."""

from __future__ import annotations

from collections.abc import Callable

from awq_tvm.schedules.cuda.config import Tile
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig, default_hopper_config
from awq_tvm.schedules.cuda.hopper_tiled import hopper_kernel
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule, matched
from awq_tvm.schedules.rule import Match, NotApplicable, Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

ARCH = "sm_90a"


class HopperRule(TensorCoreRule):
    """``TensorCoreRule``, but for more than 64 tokens `wgmma`: on compute capability 9.0 and no other."""

    name = "cuda_hopper_matmul"
    version = 8

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """What ``TensorCoreRule`` takes, where all code is for Hopper alone."""
        if set(target.cuda_archs) != {ARCH} or target.ptx_arch:
            return NotApplicable(f"only code for {ARCH} alone has wgmma")
        answer = super().applies(spec, target)
        if isinstance(answer, NotApplicable):
            return answer
        return matched(_default(spec, target), spec, target)

    def kernel_of(self, tile: Tile, overlaps: bool) -> Callable[..., None]:
        """See ``TensorCoreRule.kernel_of``; those on `wgmma` never overlap."""
        if isinstance(tile, WarpgroupConfig):
            return hopper_kernel
        return super().kernel_of(tile, overlaps)

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.cuda.hopper_space import hopper_parts

        return hopper_parts(spec, target, _default(spec, target))


def _default(spec: MatmulSpec, target: Target) -> HopperConfig:
    return default_hopper_config(spec, target.num_sms, target.shared_memory_bytes, target.has_clusters)
