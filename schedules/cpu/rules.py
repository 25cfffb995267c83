"""The CPU families as rules: which linears they serve, in which layout, with which default tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from awq_tvm.schedules.cpu.dot import dot_product
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from tvm import tirx

    from awq_tvm.schedules.cpu.dot_matmul import DotConfig
    from awq_tvm.schedules.cpu.float_matmul import FloatConfig
    from awq_tvm.schedules.cpu.kernel import Body
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
        """See ``MatmulRule.applies``."""
        if spec.activations != "float":
            return NotApplicable("x is to be quantized to int8 first")
        return cannot_serve(spec) or Match(self.config(target))

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """See ``MatmulRule.layout``."""
        return LAYOUTS["interleaved16"]

    def build(self, spec: MatmulSpec, target: Target, config: FloatConfig) -> tirx.PrimFunc:
        """See ``MatmulRule.build``."""
        from awq_tvm.schedules.cpu import float_matmul
        from awq_tvm.schedules.cpu.kernel import fused_matmul

        bodies: tuple[tuple[int, Body], ...] = ((1, partial(float_matmul.one_row, config=config)),)
        if config.few_rows is not None:
            bodies = _few_rows(spec, target, config.few_rows) or bodies
        many_rows = partial(float_matmul.many_rows, config=config)
        return fused_matmul(spec, self.layout(spec, target), self.name, bodies, many_rows)


class DotMatmulRule(MatmulRule):
    """int8 activations on CPUs with a four-way byte dot product, ``dot_matmul``.

    Args:
        name: the rule's name.
        config: the default tiles for a target.
    """

    version = 1

    def __init__(self, name: str, config: Callable[[Target], DotConfig]) -> None:
        self.name, self.config = name, config

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """See ``MatmulRule.applies``."""
        if spec.activations != "int8":
            return NotApplicable("activations are float")
        if dot_product(target.features, _code_bits(spec)) is None:
            return NotApplicable(f"{target.name} has no byte dot product for {spec.bits}-bit codes")
        return cannot_serve(spec) or Match(self.config(target))

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """See ``MatmulRule.layout``."""
        return LAYOUTS["interleaved16"]

    def build(self, spec: MatmulSpec, target: Target, config: DotConfig) -> tirx.PrimFunc:
        """See ``MatmulRule.build``."""
        from awq_tvm.schedules.cpu import dot_matmul
        from awq_tvm.schedules.cpu.kernel import fused_matmul

        dot = dot_product(target.features, _code_bits(spec))
        many_rows = partial(dot_matmul.many_rows, config=config, dot=dot)
        bodies = _few_rows(spec, target, config)
        return fused_matmul(spec, self.layout(spec, target), self.name, bodies, many_rows)


def _code_bits(spec: MatmulSpec) -> int:
    return 4 if spec.bits <= 4 else 8


def _few_rows(spec: MatmulSpec, target: Target, config: DotConfig) -> tuple[tuple[int, Body], ...]:
    """The integer bodies for M = 1 and few rows; none where the target has no instruction for the codes."""
    from awq_tvm.schedules.cpu import dot_matmul

    dot = dot_product(target.features, _code_bits(spec))
    if dot is None:
        return ()
    return (
        (1, partial(dot_matmul.one_row, config=config, dot=dot)),
        (config.few_rows.rows, partial(dot_matmul.few_rows, config=config, dot=dot)),
    )
