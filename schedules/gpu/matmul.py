"""The fused dequantize-matmul of one linear for a GPU: three kernels behind a branch on M."""

from __future__ import annotations

from typing import Any

from awq_tvm.schedules.gpu.config import GpuMatmulConfig
from awq_tvm.schedules.gpu.few_tokens import few_tokens_kernel
from awq_tvm.schedules.gpu.function import matmul_function
from awq_tvm.schedules.gpu.tiled import tiled_kernel
from awq_tvm.schedules.layout import Layout, RowLayout
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable, Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target


def build_matmul(spec: MatmulSpec, config: GpuMatmulConfig, rule: str) -> Any:
    """The scheduled PrimFunc for every M >= 1, parameters in the order that ``MatmulSpec`` states.

    The host part looks at M and launches one kernel: a warp an output for one token, the same with shared
    reads of the weights for a few, and tiles through shared memory for more.

    Args:
        spec: the linear; activations "float".
        config: sizes.
        rule: the name of the rule, for ``ir_attrs.SCHEDULE``.
    """

    def one(arguments: dict[str, Any], tokens: Any) -> None:
        few_tokens_kernel(spec, config, arguments, tokens, 1)

    def few(arguments: dict[str, Any], tokens: Any) -> None:
        few_tokens_kernel(spec, config, arguments, tokens, config.tokens_per_block)

    def many(arguments: dict[str, Any], tokens: Any) -> None:
        tiled_kernel(spec, config, arguments, tokens)

    return matmul_function(spec, RowLayout(), rule, {1: one, config.few_tokens: few}, many)


class GpuMatmulRule(MatmulRule):
    """One linear on a GPU without matrix units; ``name`` tells the CUDA rule from the Metal one.

    Args:
        name: of the rule.
        version: raised whenever the kernels change.
    """

    def __init__(self, name: str, version: int) -> None:
        self.name, self.version = name, version

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """Every spec with float activations, on a GPU with 32 threads a warp and room for the tiles."""
        config = GpuMatmulConfig()
        if spec.activations != "float":
            return NotApplicable(f"activations are {spec.activations}, and this family reads them as floats")
        if target.warp_size != 32:
            return NotApplicable(f"warps of {target.warp_size} threads, and this family is written for 32")
        if (target.shared_memory_bytes or 0) < config.shared_bytes:
            return NotApplicable(
                f"the tiles take {config.shared_bytes} bytes of shared memory, and "
                f"{target.shared_memory_bytes} are there"
            )
        return Match(config)

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """Rows as the checkpoint has them."""
        return RowLayout()

    def build(self, spec: MatmulSpec, target: Target, config: GpuMatmulConfig) -> Any:
        """See ``build_matmul``."""
        return build_matmul(spec, config, self.name)

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.gpu.spaces import portable_parts

        return portable_parts(spec, target, GpuMatmulConfig())
