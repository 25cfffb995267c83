"""The CPU families as rules: which linears they serve, in which layout, with which default tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu.dot import ONE_INSTRUCTION, dot_product
from awq_tvm.schedules.cpu.plane_codes import planes
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable, Part
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from tvm import tirx

    from awq_tvm.schedules.cpu.dot_matmul import DotConfig
    from awq_tvm.schedules.cpu.float_matmul import FloatConfig
    from awq_tvm.targets import Target


WIDEST_EXACT_GROUP = 256
"""Up to this group size three digits below the group's largest activation are as good as float32 sums."""


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
        return LAYOUTS["paired_blocks"]

    def build(self, spec: MatmulSpec, target: Target, config: FloatConfig) -> tirx.PrimFunc:
        """See ``MatmulRule.build``."""
        from awq_tvm.schedules.cpu import float_matmul
        from awq_tvm.schedules.cpu.kernel import fused_matmul

        one_row = partial(float_matmul.one_row, config=config)
        many_rows = partial(float_matmul.many_rows, config=config)
        return fused_matmul(spec, self.layout(spec, target), self.name, ((1, one_row),), many_rows)

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.cpu.spaces import float_parts

        return float_parts(spec, target, self.config(target))


class DotMatmulRule(MatmulRule):
    """Quantized activations on CPUs with a four-way byte dot product, ``dot_matmul``.

    Args:
        name: the rule's name.
        activations: the mode it serves; "int8" with one digit, "float" with three.
        config: the default tiles for a target.
    """

    version = 3
    has_prologues = True

    def __init__(self, name: str, activations: str, config: Callable[[Target], DotConfig]) -> None:
        self.name, self.activations, self.config = name, activations, config

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """See ``MatmulRule.applies``."""
        if spec.activations != self.activations:
            return NotApplicable(f"activations are {spec.activations}, not {self.activations}")
        if dot_product(target.features, _code_bits(spec)) is None:
            return NotApplicable(f"{target.name} has no byte dot product for {spec.bits}-bit codes")
        if self.activations == "float" and not target.features & ONE_INSTRUCTION:
            return NotApplicable(f"{target.name} multiplies digits no faster than floats")
        if self.activations == "float" and spec.group_size > WIDEST_EXACT_GROUP:
            return NotApplicable(f"groups of {spec.group_size} would share too few digits of precision")
        return cannot_serve(spec) or Match(self.config(target))

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """See ``MatmulRule.layout``."""
        dot = dot_product(target.features, _code_bits(spec))
        if dot is not None and dot.signed and _code_bits(spec) == 8:
            return LAYOUTS["signed_blocks"]
        return LAYOUTS["bit_planes" if planes(spec, target) else "paired_blocks"]

    def build(self, spec: MatmulSpec, target: Target, config: DotConfig) -> tirx.PrimFunc:
        """See ``MatmulRule.build``."""
        from awq_tvm.schedules.cpu import dot_matmul
        from awq_tvm.schedules.cpu.kernel import fused_matmul

        dot = dot_product(target.features, _code_bits(spec))
        if dot is None:
            raise UnsupportedError(f"{target.name} has no byte dot product for {spec.bits}-bit codes")
        if config.matrix and "i8mm" not in target.features:
            raise UnsupportedError(
                f"{target.name} has no matrix instructions for bytes", fix="set matrix=False"
            )
        one_row, few_rows, many_rows = (
            partial(body, config=config, dot=dot)
            for body in (dot_matmul.one_row, dot_matmul.few_rows, dot_matmul.many_rows)
        )
        bodies = ((1, one_row), (config.few_rows_up_to, few_rows))
        return fused_matmul(spec, self.layout(spec, target), self.name, bodies, many_rows)

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.cpu.spaces import dot_parts

        return dot_parts(spec, target, self.config(target))


def _code_bits(spec: MatmulSpec) -> int:
    return 4 if spec.bits <= 4 else 8
