"""The search for a scale per input channel: s = mean|X|^r with the best r (arXiv:2306.00978, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from awq_tvm.quantize.group_quantize import round_trip
from awq_tvm.quantize.judge import Judge
from awq_tvm.quantize.rounding_plan import Roundings

_SMALLEST_SCALE = 1e-4


@dataclass(frozen=True, slots=True)
class ScaleChoice:
    """What the search found.

    Attributes:
        scales: float32 [K], > 0; all ones where nothing beats plain rounding.
        exponent: the r they come from.
        loss: at these scales, without clipping.
        loss_plain: without scales: the loss of rounding to nearest.
    """

    scales: Tensor
    exponent: float
    loss: float
    loss_plain: float


def scales_for(mean_absolute: Tensor, exponent: float) -> Tensor:
    """Scales of one exponent, centred so that the largest and the smallest multiply to one.

    Args:
        mean_absolute: float32 [K], >= 0.
        exponent: 0 gives exact ones.

    Returns:
        float32 [K], finite, > 0.
    """
    scales = mean_absolute.pow(exponent).clamp(min=_SMALLEST_SCALE)
    low, high = torch.aminmax(scales)
    return scales / (high * low).sqrt()


def search_scales(
    weights: Mapping[str, Tensor],
    mean_absolute: Tensor,
    judge: Judge,
    roundings: Roundings,
    *,
    steps: int,
) -> ScaleChoice:
    """Keep the best of the exponents 0, 1/steps .. 1. Both ends are tried: 0 is the identity.

    Args:
        weights: [N, K] of the group's linears, of any float type.
        mean_absolute: float32 [K] of their input.
        judge: measures the loss.
        roundings: of the linears.
        steps: steps of the grid; 0 tries the identity alone.

    Returns:
        The choice; its loss is never above loss_plain.
    """
    losses = {0: judge.loss({name: round_trip(weight, roundings[name]) for name, weight in weights.items()})}

    def try_step(step: int) -> None:
        if 0 < step <= steps and step not in losses:
            scales = scales_for(mean_absolute, step / steps)
            losses[step] = judge.loss(
                {name: round_trip(weight, roundings[name], scales) for name, weight in weights.items()}
            )

    # The loss is smooth in the exponent: every other step first, then the neighbours of the best.
    for step in (*range(2, steps, 2), steps):
        try_step(step)
    coarse = min(losses, key=lambda step: losses[step])
    for step in (coarse - 1, coarse + 1):
        try_step(step)
    best = min(losses, key=lambda step: losses[step])
    scales = scales_for(mean_absolute, best / steps) if best else torch.ones_like(mean_absolute)
    return ScaleChoice(scales, best / steps if best else 0.0, losses[best], losses[0])
