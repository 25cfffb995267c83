"""Activation-aware quantization of one block: scales, clipping, rounding, and a guard (arXiv:2306.00978).

Groups are settled against the data flow, so that a linear which absorbs the scales of a later group has them
when it is
rounded: what is judged is what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.quantize.activations import InputStatistics
from awq_tvm.quantize.architecture import Architecture
from awq_tvm.quantize.clip_search import Limits, search_paper, search_two_sided
from awq_tvm.quantize.folding import absorb_into_norm, head_sharing, mean_over_sharing_heads, rows_of_feeder
from awq_tvm.quantize.group_quantize import Quantized, Rounding, quantize
from awq_tvm.quantize.judge import judge_of
from awq_tvm.quantize.scale_search import search_scales


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
        guard: keep plain rounding for a group of linears that the search made worse.
    """

    scale_steps: int = 20
    clip: Literal["two-sided", "paper", "none"] = "two-sided"
    share_value_scales: bool = True
    search_tokens: int = 2048
    guard: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value that cannot be meant.
        """
        if self.scale_steps < 0 or self.search_tokens < 1 or self.clip not in ("two-sided", "paper", "none"):
            raise UsageError(
                "The options of the search cannot be meant",
                why=f"scale_steps {self.scale_steps} >= 0, search_tokens {self.search_tokens} >= 1, "
                f"clip {self.clip!r} one of "
                "two-sided, paper, none",
            )


@dataclass(frozen=True, slots=True)
class GroupReport:
    """How a group of linears fared, as mean squared change of the output it is judged by.

    Attributes:
        name: of the group.
        exponent: r of the scales that were kept, 0 for none.
        clipped: whether clipping was kept.
        loss_rtn: of rounding to nearest.
        loss: of what was kept.
    """

    name: str
    exponent: float
    clipped: bool
    loss_rtn: float
    loss: float


@dataclass
class BlockResult:
    """A quantized block.

    Attributes:
        quantized: by path below the block, for example "mlp.up_proj".
        dense: float16, by path below the block: norms and biases, scales absorbed.
        groups: how each group of linears fared; empty without calibration.
    """

    quantized: dict[str, Quantized] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    groups: list[GroupReport] = field(default_factory=list)


def quantize_block_rtn(
    block: torch.nn.Module, architecture: Architecture, rounding: Rounding, where: str
) -> BlockResult:
    """Round a block to nearest.

    Args:
        block: filled, in full precision.
        architecture: names its linears.
        rounding: bits and group size.
        where: name of the block for messages.

    Returns:
        The quantized block.

    Raises:
        UnsupportedError: a norm or bias is too large for float16.
    """
    result = BlockResult()
    for name in architecture.linears:
        result.quantized[name] = quantize(block.get_submodule(name).weight, rounding)
    _keep_dense(block, architecture, result, where)
    return result


def quantize_block_awq(
    block: torch.nn.Module,
    architecture: Architecture,
    statistics: Sequence[InputStatistics],
    rounding: Rounding,
    options: AwqOptions,
    head_dim: int,
    where: str,
) -> BlockResult:
    """Quantize a block with scales and clipping chosen on calibration data.

    Args:
        block: filled, in full precision; it is not changed.
        architecture: names its linears and what feeds them.
        statistics: of each group's input, in the order of architecture.groups.
        rounding: bits and group size.
        options: the steps to take.
        head_dim: channels of an attention head.
        where: name of the block for messages.

    Returns:
        The quantized block, scales absorbed.

    Raises:
        UnsupportedError: a norm or bias is too large for float16.
    """
    result = BlockResult()
    row_scales: dict[str, Tensor] = {}
    for measured in reversed(statistics):
        _settle_group(block, measured, rounding, options, head_dim, row_scales, result)
    result.groups.reverse()
    for name, scales in row_scales.items():
        bias = block.get_submodule(name).bias
        if bias is not None:
            result.dense[f"{name}.bias"] = half(bias / scales, f"{where}.{name}.bias")
    _keep_dense(block, architecture, result, where)
    return result


@dataclass
class _Candidate:
    """One way to quantize a group: its scales, what a norm before it keeps, the linears, and the loss."""

    exponent: float
    clipped: bool
    scales: Tensor
    norm_weight: Tensor | None
    quantized: dict[str, Quantized]
    loss: float


def _settle_group(
    block: torch.nn.Module,
    measured: InputStatistics,
    rounding: Rounding,
    options: AwqOptions,
    head_dim: int,
    row_scales: dict[str, Tensor],
    result: BlockResult,
) -> None:
    """Choose scales and clipping for one group, and write what was chosen into result and row_scales."""
    group = measured.group
    weights = {name: block.get_submodule(name).weight for name in group.linears}
    feeder = block.get_submodule(group.feeder)
    judge = judge_of(block, measured)
    magnitude, sharing = measured.mean_absolute, None
    if group.feeder_is_linear:
        sharing = head_sharing(magnitude.numel(), feeder.weight.shape[0], head_dim)
        if sharing is not None and sharing > 1:
            sharing = sharing if options.share_value_scales else None
            magnitude = (
                magnitude if sharing is None else mean_over_sharing_heads(magnitude, sharing, head_dim)
            )
    can_scale = sharing is not None or not group.feeder_is_linear
    choice = search_scales(weights, magnitude, judge, rounding, steps=options.scale_steps if can_scale else 0)

    def attempt(exponent: float, scales: Tensor, clip: bool) -> _Candidate:
        norm_weight = None
        if not group.feeder_is_linear:
            norm_weight, scales = absorb_into_norm(feeder.weight, scales)
        quantized: dict[str, Quantized] = {}
        effective: dict[str, Tensor] = {}
        for name, weight in weights.items():
            scaled, rows = weight * scales, row_scales.get(name)
            if rows is not None:
                scaled.div_(rows.unsqueeze(1))
            limits = _clip(name, scaled, scales, measured, rounding, options) if clip else None
            quantized[name] = quantize(scaled, rounding, limits)
            effective[name] = quantized[name].dequantize().div_(scales)
            if rows is not None:
                effective[name].mul_(rows.unsqueeze(1))
        return _Candidate(exponent, clip, scales, norm_weight, quantized, judge.loss(effective))

    ones = torch.ones_like(magnitude)
    clip = options.clip != "none"
    best = attempt(choice.exponent, choice.scales, clip)
    if options.guard and best.loss > choice.loss_plain:
        others = [
            attempt(choice.exponent, choice.scales, False),
            attempt(0.0, ones, clip),
            attempt(0.0, ones, False),
        ]
        best = min([best, *others], key=lambda one: one.loss)

    if best.norm_weight is not None:
        result.dense[f"{group.feeder}.weight"] = best.norm_weight
    elif sharing is not None and best.exponent:
        row_scales[group.feeder] = rows_of_feeder(best.scales, sharing, head_dim)
    result.quantized.update(best.quantized)
    result.groups.append(GroupReport(group.name, best.exponent, best.clipped, choice.loss_plain, best.loss))


def _clip(
    name: str,
    scaled: Tensor,
    scales: Tensor,
    measured: InputStatistics,
    rounding: Rounding,
    options: AwqOptions,
) -> Limits | None:
    """The ranges of a linear's groups, None where the recipe does not clip it."""
    if options.clip == "paper" and name not in measured.group.clip_in_paper:
        return None
    inverse = scales.reciprocal().view(measured.moments.shape[0], -1)
    moments = measured.moments * inverse.unsqueeze(1) * inverse.unsqueeze(2)
    search = search_paper if options.clip == "paper" else search_two_sided
    return search(scaled, moments, rounding)


def _keep_dense(block: torch.nn.Module, architecture: Architecture, result: BlockResult, where: str) -> None:
    """Take over, as float16, the parameters that are neither quantized nor already there."""
    linears = {f"{name}.weight" for name in architecture.linears}
    for name, parameter in block.named_parameters():
        if name not in linears and name not in result.dense:
            result.dense[name] = half(parameter, f"{where}.{name}")


def half(tensor: Tensor, where: str) -> Tensor:
    """Round a tensor to float16.

    Args:
        tensor: float32, finite.
        where: its name for the message.

    Returns:
        float16 of the same shape.

    Raises:
        UnsupportedError: a value beyond float16's range.
    """
    rounded = tensor.half()
    if not bool(torch.isfinite(rounded).all()):
        raise UnsupportedError(
            "A weight that stays unquantized is too large for float16",
            where=where,
            why=f"its largest magnitude is {float(tensor.abs().max()):.6g}; float16 ends at 65504",
        )
    return rounded
