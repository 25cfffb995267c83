"""The CPU families as rules: which linears they serve, in which layout, with which default tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from tvm import tirx

    from awq_tvm.schedules.cpu.float_matmul import FloatConfig
    from awq_tvm.targets import Target


def cannot_serve(spec: MatmulSpec) -> NotApplicable | None:
    """What no CPU family does, or None."""
    if spec.dtype != "float32":
        return NotApplicable(f"activations are {spec.dtype}; the CPU kernels take float32")
    if spec.group_size % 8:
        return NotApplicable(f"group size {spec.group_size} is not a multiple of 8")
    return None


class FloatMatmulRule(MatmulRule):
    """float32 activations on any CPU with vectors, ``float_matmul``.

    Args:
        name: the rule's name.
        config: the default tiles for a target.
    """

    version = 1

    def __init__(self, name: str, config: Callable[[Target], FloatConfig]) -> None:
        self.name, self.config = name, config

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """See ``MatmulRule.applies``; serves either activation mode, always in float32."""
        return cannot_serve(spec) or Match(self.config(target))

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """See ``MatmulRule.layout``."""
        return LAYOUTS["interleaved16"]

    def build(self, spec: MatmulSpec, target: Target, config: FloatConfig) -> tirx.PrimFunc:
        """See ``MatmulRule.build``."""
        from awq_tvm.schedules.cpu import float_matmul
        from awq_tvm.schedules.cpu.kernel import fused_matmul

        return fused_matmul(
            spec,
            self.layout(spec, target),
            self.name,
            one_row=partial(float_matmul.one_row, config=config),
            many_rows=partial(float_matmul.many_rows, config=config),
        )
