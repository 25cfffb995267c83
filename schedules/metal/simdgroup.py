"""Metal: the fused dequantize-matmul on SIMD groups and their 8 x 8 matrices, for the M1 and later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from awq_tvm.schedules.gpu.function import Emit, matmul_function
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.metal.config import (
    CHUNK,
    LANES,
    FewConfig,
    SimdgroupConfig,
    TileConfig,
    default_config,
)
from awq_tvm.schedules.metal.few_tokens import few_tokens_kernel
from awq_tvm.schedules.metal.tiled import tiled_kernel
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable, Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target


class SimdgroupRule(MatmulRule):
    """x in float16, sums in float32; weights exact for a few tokens, rounded to float16 for many."""

    name = "metal_simdgroup_matmul"
    version = 2
    gates_outputs = True

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """Every spec of whole chunks of k in float16, on a GPU with SIMD groups of 32 and room for the tiles."""
        config = default_config(spec.out_features, target.num_sms)
        if spec.activations != "float" or spec.dtype != "float16":
            return NotApplicable(f"activations are {spec.activations} in {spec.dtype}, and it takes float16")
        if spec.group_size % CHUNK:
            return NotApplicable(f"groups of {spec.group_size} are no multiple of {CHUNK}")
        if target.warp_size != LANES:
            return NotApplicable(f"SIMD groups of {target.warp_size}, and it is written for {LANES}")
        if (target.shared_memory_bytes or 0) < config.threadgroup_bytes:
            return NotApplicable(
                f"the tiles take {config.threadgroup_bytes} bytes of threadgroup memory, and "
                f"{target.shared_memory_bytes} are there"
            )
        return Match(config)

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """Rows of shuffled codes, shared by all kernels."""
        return LAYOUTS["simdgroup_rows"]

    def build(self, spec: MatmulSpec, target: Target, config: SimdgroupConfig) -> Any:
        """See ``MatmulRule.build``; the host part looks at M and launches one kernel."""
        up_to: dict[int, Emit] = {few.tokens: _few(spec, few) for few in config.few}
        *tiles, last = config.tiles
        up_to |= {tile.tokens: _tiled(spec, tile) for tile in tiles}
        return matmul_function(spec, LAYOUTS["simdgroup_rows"], self.name, up_to, _tiled(spec, last))

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.metal.spaces import simdgroup_parts

        return simdgroup_parts(spec, target, default_config(spec.out_features, target.num_sms))


def _few(spec: MatmulSpec, config: FewConfig) -> Emit:
    # The sums of an output are of one SIMD group.
    own = replace(config, rows=max(spec.sums_per_output, config.rows))
    return lambda arguments, tokens: few_tokens_kernel(spec, own, arguments, tokens)


def _tiled(spec: MatmulSpec, config: TileConfig) -> Emit:
    return lambda arguments, tokens: tiled_kernel(spec, config, arguments, tokens)
