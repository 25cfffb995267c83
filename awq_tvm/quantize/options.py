"""Which steps the quantizer takes, and how far each goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from awq_tvm.errors import UsageError


@dataclass(frozen=True, slots=True)
class AwqOptions:
    """The steps of the recipe, each of which can be left out.

    Attributes:
        scale_steps: steps of the exponent grid, 0 for no scales.
        clip: "two-sided" (each end of the range by itself, all linears), "paper" (symmetric, not queries and
            keys) or "none".
        share_value_scales: with grouped-query attention, scale the attention output by values that the heads
            of a group share; the paper leaves it unscaled.
        search_tokens: tokens of the calibration on which modules are run to judge scales.
        guard: keep plain rounding for a group of linears, or a block, that the search made worse.
        learn_steps: steps in which it is learned which weights of a block to round up and which down; 0 rounds
            to nearest.
        learn_rate: how far the first of these steps moves a weight, in steps of its group.
        learn_scale_rate: how far it changes a group's step, relative to it; 0 keeps those of the search.
        learn_tokens: tokens of each of these steps.
        learn_from: what enters the block in these steps: what the blocks before it give once they are quantized,
            or what they gave in full precision.
        learn_norm_steps: steps in which the norm before the head is fitted to what the quantized blocks leave;
            0 keeps it.
        learn_norm_rate: how far the first of these moves a weight, relative to their mean size.
    """

    scale_steps: int = 20
    clip: Literal["two-sided", "paper", "none"] = "two-sided"
    share_value_scales: bool = True
    search_tokens: int = 2048
    guard: bool = True
    learn_steps: int = 0
    learn_rate: float = 0.01
    learn_scale_rate: float = 0.001
    learn_tokens: int = 2048
    learn_from: Literal["quantized", "full"] = "quantized"
    learn_norm_steps: int = 0
    learn_norm_rate: float = 0.02

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value that cannot be meant.
        """
        if self.scale_steps < 0 or self.search_tokens < 1 or self.clip not in ("two-sided", "paper", "none"):
            raise UsageError(
                "The options of the search cannot be meant",
                why=f"scale_steps {self.scale_steps} >= 0, search_tokens {self.search_tokens} >= 1, "
                f"clip {self.clip!r} one of two-sided, paper, none",
            )
        if (
            self.learn_steps < 0
            or not 0 < self.learn_rate <= 1
            or not 0 <= self.learn_scale_rate <= 0.01
            or self.learn_tokens < 1
            or self.learn_from not in ("quantized", "full")
            or self.learn_norm_steps < 0
            or not 0 < self.learn_norm_rate <= 1
        ):
            raise UsageError(
                "The options of learned rounding cannot be meant",
                why=f"learn_steps {self.learn_steps} >= 0, learn_rate {self.learn_rate} above 0 and at most 1, "
                f"learn_scale_rate {self.learn_scale_rate} from 0 to 0.01, "
                f"learn_tokens {self.learn_tokens} >= 1, learn_from {self.learn_from!r} one of quantized, full, "
                f"learn_norm_steps {self.learn_norm_steps} >= 0, "
                f"learn_norm_rate {self.learn_norm_rate} above 0 and at most 1",
            )


METHODS: Mapping[str, AwqOptions] = {
    "awq": AwqOptions(),
    "awq+": AwqOptions(learn_steps=60, learn_norm_steps=40),
}
"""The recommended options of each method that calibrates."""
