"""CUDA: the fused dequantize-matmul on Hopper, with products of warpgroups for many tokens."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.config import FewConfig, TiledConfig
from awq_tvm.schedules.cuda.few_tokens import few_tokens_kernel
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig, default_hopper_config
from awq_tvm.schedules.cuda.hopper_tiled import hopper_kernel
from awq_tvm.schedules.cuda.split_k import add_parts_kernel, limit_of, make_parts
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.cuda.tiled import tiled_kernel
from awq_tvm.schedules.gpu.function import Emit, matmul_function
from awq_tvm.schedules.rule import Match, NotApplicable, Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

ARCH = "sm_90a"


class HopperRule(TensorCoreRule):
    """``TensorCoreRule``, but for more than 64 tokens `wgmma`: on compute capability 9.0 and no other."""

    name = "cuda_hopper_matmul"
    version = 1

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """What ``TensorCoreRule`` takes in float16, where all code is for Hopper alone."""
        if set(target.cuda_archs) != {ARCH} or target.ptx_arch:
            return NotApplicable(f"only code for {ARCH} alone has wgmma")
        if spec.dtype != "float16":
            return NotApplicable(f"x is in {spec.dtype}, and it takes float16")
        answer = super().applies(spec, target)
        if isinstance(answer, NotApplicable):
            return answer
        config = default_hopper_config(spec, target.num_sms, target.shared_memory_bytes)
        wanted = config.shared_bytes(spec.bits, spec.group_size)
        if (target.shared_memory_bytes or 0) < wanted:
            return NotApplicable(
                f"the tiles take {wanted} bytes of shared memory, and {target.shared_memory_bytes} are there"
            )
        return Match(config)

    def build(self, spec: MatmulSpec, target: Target, config: HopperConfig) -> Any:  # type: ignore[override]
        """See ``MatmulRule.build``; the host part looks at M and launches one kernel."""
        up_to: dict[int, Emit] = {few.most_tokens: _few(spec, few) for few in config.few}
        for tile in config.middle:
            up_to[limit_of(spec, config, tile)] = _divided(spec, config, tile)
        return matmul_function(
            spec,
            self.layout(spec, target),
            self.name,
            up_to,
            lambda arguments, tokens: hopper_kernel(spec, config.many, arguments, tokens),
        )

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.cuda.hopper_space import hopper_parts

        default = default_hopper_config(spec, target.num_sms, target.shared_memory_bytes)
        return hopper_parts(spec, target, default)


def _few(spec: MatmulSpec, config: FewConfig) -> Emit:
    return lambda arguments, tokens: few_tokens_kernel(spec, config, arguments, tokens)


def _divided(spec: MatmulSpec, config: HopperConfig, tile: TiledConfig | WarpgroupConfig) -> Emit:
    def emit(arguments: dict[str, Any], tokens: Any) -> None:
        parts = make_parts(spec, config, tile, tokens)
        if isinstance(tile, TiledConfig):
            tiled_kernel(spec, tile, arguments, tokens, parts)
        else:
            hopper_kernel(spec, tile, arguments, tokens, parts)
        if parts is None:
            return
        if isinstance(parts.count, int):
            add_parts_kernel(spec, parts, arguments, tokens)
            return
        with T.If(parts.count > 1), T.Then():
            add_parts_kernel(spec, parts, arguments, tokens)

    return emit
