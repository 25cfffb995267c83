"""The fused dequantize-matmul of one linear for a GPU: three kernels behind a branch on M."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm import ir_attrs
from awq_tvm.schedules.gpu.config import GpuMatmulConfig
from awq_tvm.schedules.gpu.few_tokens import few_tokens_kernel
from awq_tvm.schedules.gpu.tiled import tiled_kernel
from awq_tvm.schedules.layout import Layout, RowLayout
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable
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
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dequantize_matmul")
        T.func_attr(
            {
                "tirx.noalias": True,
                ir_attrs.IS_SCHEDULED: True,
                # TVM's operator fusion must leave it alone.
                "op_pattern": 8,
                ir_attrs.OP: ir_attrs.OP_DEQUANTIZE_MATMUL,
                ir_attrs.BITS: spec.bits,
                ir_attrs.GROUP_SIZE: spec.group_size,
                ir_attrs.MATMUL_SPEC: spec.to_json(),
                ir_attrs.LAYOUT: RowLayout.name,
                ir_attrs.SCHEDULE: rule,
            }
        )
        tokens = IRBuilder.name("m", T.int64())
        arguments = _arguments(spec, tokens)
        with T.If(tokens == 1):
            with T.Then():
                few_tokens_kernel(spec, config, arguments, tokens, 1)
            with T.Else(), T.If(tokens <= config.few_tokens):
                with T.Then():
                    few_tokens_kernel(spec, config, arguments, tokens, config.tokens_per_block)
                with T.Else():
                    tiled_kernel(spec, config, arguments, tokens)
    return builder.get()


def _arguments(spec: MatmulSpec, tokens: Any) -> dict[str, Any]:
    """Declare the parameters and their buffers in order, named as in ``MatmulSpec`` and the layout."""
    shapes: list[tuple[str, tuple[Any, ...], str]] = [("x", (tokens, spec.in_features), spec.dtype)]
    shapes += [(array.suffix, array.shape, array.dtype) for array in RowLayout().arrays(spec)]
    if spec.has_bias:
        shapes.append(("bias", (spec.out_features,), spec.dtype))
    if spec.has_residual:
        shapes.append(("residual", (tokens, spec.out_features), spec.dtype))
    shapes.append(("y", (tokens, spec.out_features), spec.dtype))
    handles = [T.arg(f"{name}_handle", T.handle()) for name, _, _ in shapes]
    return {
        name: IRBuilder.name(name, T.match_buffer(handle, [_int64(d) for d in shape], dtype))
        for handle, (name, shape, dtype) in zip(handles, shapes, strict=True)
    }


def _int64(extent: Any) -> Any:
    """Shapes are int64, as Relax has them."""
    return T.int64(extent) if isinstance(extent, int) else extent


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
