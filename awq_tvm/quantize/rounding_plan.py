"""How each linear of a model is rounded: one way for most, others by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from awq_tvm.checkpoint import QuantizationScheme
from awq_tvm.quantize.group_quantize import Rounding

Roundings = Mapping[str, Rounding]
"""Of one block's linears, by path below the block."""


@dataclass(frozen=True)
class RoundingPlan:
    """The rounding of every linear.

    Attributes:
        default: of the linears that `exceptions` does not name.
        exceptions: by full name, "model.layers.0.mlp.up_proj".
    """

    default: Rounding
    exceptions: Mapping[str, Rounding] = field(default_factory=dict)

    def of(self, name: str) -> Rounding:
        """The rounding of one linear, by full name."""
        return self.exceptions.get(name, self.default)

    def of_block(self, where: str, linears: Iterable[str]) -> Roundings:
        """The roundings of the linears of the block named `where`."""
        return {name: self.of(f"{where}.{name}") for name in linears}

    def scheme(self) -> QuantizationScheme:
        """The plan as the checkpoint states it."""
        exceptions = {name: _scheme(rounding) for name, rounding in self.exceptions.items()}
        return replace(_scheme(self.default), exceptions=exceptions)


def _scheme(rounding: Rounding) -> QuantizationScheme:
    return QuantizationScheme(rounding.bits, rounding.group_size, zero_point=not rounding.symmetric)
