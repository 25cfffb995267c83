"""Activation-aware quantization of one block: scales, clipping, rounding, and a guard (arXiv:2306.00978).

Groups are settled against the data flow, so that a linear which absorbs the scales of a later group has them when it
is rounded: what is judged is what is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from awq_tvm.errors import UnsupportedError
from awq_tvm.quantize.activations import InputStatistics
from awq_tvm.quantize.architecture import Architecture, LinearGroup
from awq_tvm.quantize.clip_search import Limits, count_outside, search_paper, search_two_sided
from awq_tvm.quantize.folding import (
    absorb_into_norm,
    mean_over_shared_rows,
    rows_are_shared,
    scales_of_rows,
)
from awq_tvm.quantize.group_quantize import Quantized, Rounding, quantize
from awq_tvm.quantize.judge import Judge, judge_of
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.rounding_plan import Roundings
from awq_tvm.quantize.scale_search import search_scales


@dataclass(frozen=True, slots=True)
class GroupReport:
    """How a group of linears fared, as mean squared change of the output it is judged by.

    Attributes:
        name: of the group.
        exponent: r of the scales that were kept, 0 for none.
        clipped: whether clipping was kept.
        loss_rtn: of rounding to nearest.
        loss: of what was kept.
        weights: in its linears.
        weights_outside: those of them outside the range that was kept, which rounding moves to its end.
        scale_min: the least of the scales that were folded; all are 1 where there are none.
        scale_median: of these scales.
        scale_max: the largest.
    """

    name: str
    exponent: float
    clipped: bool
    loss_rtn: float
    loss: float
    weights: int = 0
    weights_outside: int = 0
    scale_min: float = 1.0
    scale_median: float = 1.0
    scale_max: float = 1.0

    def as_rounded(self) -> GroupReport:
        """The report of the same group where it is rounded to nearest and nothing else."""
        return GroupReport(self.name, 0.0, False, self.loss_rtn, self.loss_rtn, self.weights)


@dataclass
class BlockResult:
    """A quantized block.

    Attributes:
        quantized: by path below the block, for example "mlp.up_proj".
        dense: float16, by path below the block: norms and biases, scales absorbed.
        groups: how each group of linears fared; empty without calibration.
        column_scales: what the columns of a linear were multiplied by before it was rounded, float32 [K], by path;
            a linear without entry was rounded as it was.
        row_scales: what the rows of a linear were divided by, float32 [N], by path; none is 1.
        loss_rtn: mean squared change of the block's output by rounding to nearest, None without calibration.
        loss: by what was kept, None without calibration.
        short_experts: how many experts were chosen for too few tokens, and so were measured on all.
    """

    quantized: dict[str, Quantized] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    groups: list[GroupReport] = field(default_factory=list)
    column_scales: dict[str, Tensor] = field(default_factory=dict)
    row_scales: dict[str, Tensor] = field(default_factory=dict)
    loss_rtn: float | None = None
    loss: float | None = None
    short_experts: int = 0

    def weights(self) -> dict[str, Tensor]:
        """All parameters of the block as they are written, float32 by path below the block."""
        weights = {f"{name}.weight": weight.dequantize() for name, weight in self.quantized.items()}
        return weights | {name: weight.float() for name, weight in self.dense.items()}

    def scaled(self, name: str, weight: Tensor) -> Tensor:
        """A linear's weight as it was before rounding: with these and `dense` the block computes what it did.

        Args:
            name: path of the linear below the block.
            weight: in the original block, [N, K], of any float type.

        Returns:
            float32 [N, K], which shares nothing with the weight.
        """
        return _scaled(weight, self.column_scales.get(name), self.row_scales.get(name))

    def unscaled(self, name: str) -> Tensor:
        """A linear's quantized weight for the input as it is without scales, float32 [N, K]."""
        weight = self.quantized[name].dequantize()
        columns, rows = self.column_scales.get(name), self.row_scales.get(name)
        if columns is not None:
            weight.div_(columns)
        return weight if rows is None else weight.mul_(rows.unsqueeze(1))


def quantize_block_rtn(
    block: torch.nn.Module, architecture: Architecture, roundings: Roundings, where: str
) -> BlockResult:
    """Round a block to nearest.

    Args:
        block: filled, in full precision.
        architecture: names its linears.
        roundings: of its linears; those of a group have one group size.
        where: name of the block for messages.

    Returns:
        The quantized block.

    Raises:
        UnsupportedError: a norm or bias is too large for float16.
    """
    result = BlockResult()
    for name in architecture.linears:
        result.quantized[name] = quantize(block.get_submodule(name).weight, roundings[name])
    _keep_dense(block, architecture, result, where)
    return result


def quantize_block_awq(
    block: torch.nn.Module,
    architecture: Architecture,
    statistics: Sequence[InputStatistics],
    roundings: Roundings,
    options: AwqOptions,
    where: str,
) -> BlockResult:
    """Quantize a block with scales and clipping chosen on calibration data.

    Args:
        block: filled, in full precision; it is not changed.
        architecture: names its linears and what feeds them.
        statistics: of each group's input, in the order of architecture.groups.
        roundings: of its linears; those of a group have one group size.
        options: the steps to take.
        where: name of the block for messages.

    Returns:
        The quantized block, scales absorbed.

    Raises:
        UnsupportedError: a norm or bias is too large for float16.
    """
    search = _BlockSearch(block, roundings, options)
    for measured in reversed(statistics):
        search.settle(measured)
    result = BlockResult()
    for measured in statistics:
        kept = search.kept[measured.group.name]
        result.quantized.update(kept.quantized)
        result.groups.append(kept.report)
        result.column_scales.update(dict.fromkeys(kept.quantized, kept.scales))
        if kept.norm_weight is not None:
            _keep_beside_scales(block, measured.group, kept, result, where)
    result.row_scales.update(search.row_scales)
    for name, scales in search.row_scales.items():
        bias = block.get_submodule(name).bias
        if bias is not None:
            result.dense[f"{name}.bias"] = half(bias / scales, f"{where}.{name}.bias")
    _keep_dense(block, architecture, result, where)
    return result


@dataclass
class _Candidate:
    """One way to quantize a group: scales, what a norm before it keeps, linears, and how they fare."""

    scales: Tensor
    norm_weight: Tensor | None
    quantized: dict[str, Quantized]
    report: GroupReport


class _BlockSearch:
    """The groups of one block that are settled so far.

    Attributes:
        kept: by name of the group.
        row_scales: by path of a linear, what its rows are divided by for the group it feeds, float32 [N].
    """

    def __init__(self, block: torch.nn.Module, roundings: Roundings, options: AwqOptions) -> None:
        self._block, self._roundings, self._options = block, roundings, options
        self._settled: list[InputStatistics] = []
        self.kept: dict[str, _Candidate] = {}
        self.row_scales: dict[str, Tensor] = {}

    def settle(self, measured: InputStatistics) -> None:
        """Choose scales and clipping for one group; the groups it feeds are settled already."""
        group = measured.group
        kept = self._choose(measured, self._options.scale_steps)
        divided = self.row_scales.keys() & group.linears
        if self._options.guard and kept.report.loss > kept.report.loss_rtn and divided:
            # Divided rows meet other float16 steps, and can lose to plain rounding by that alone.
            for name in divided:
                del self.row_scales[name]
            for later in self._settled:
                if later.group.feeder in divided:
                    self.kept[later.group.name] = self._choose(later, 0)
            kept = self._choose(measured, self._options.scale_steps)
        self.kept[group.name] = kept
        self._settled.append(measured)
        if group.feeder is not None and group.feeder_is_linear and kept.report.exponent:
            count = self._block.get_submodule(group.feeder).weight.shape[0]
            self.row_scales[group.feeder] = scales_of_rows(kept.scales, group.rows, count)

    def _choose(self, measured: InputStatistics, steps: int) -> _Candidate:
        group, magnitude = measured.group, measured.mean_absolute
        weights = {name: self._block.get_submodule(name).weight for name in group.linears}
        judge = judge_of(self._block, measured)
        shared = rows_are_shared(group.rows)
        if group.feeder is None or (shared and not self._options.share_value_scales):
            steps = 0
        elif shared:
            magnitude = mean_over_shared_rows(magnitude, group.rows)
        choice = search_scales(weights, magnitude, judge, self._roundings, steps=steps)

        def attempt(scales: Tensor, exponent: float, clip: bool) -> _Candidate:
            return self._round(measured, judge, weights, choice.loss_plain, scales, exponent, clip)

        ones, clip = torch.ones_like(magnitude), self._options.clip != "none"
        best = attempt(choice.scales, choice.exponent, clip)
        if self._options.guard and best.report.loss > choice.loss_plain:
            others = [
                partial(attempt, choice.scales, choice.exponent, False),
                partial(attempt, ones, 0.0, clip),
            ]
            if self.row_scales.keys() & weights.keys():
                others.append(partial(attempt, ones, 0.0, False))
            else:
                others.append(partial(_plain, group.name, weights, self._roundings, ones, choice.loss_plain))
            # Two alive at a time: those of a wide group are a good part of the block.
            for other in others:
                best = min(best, other(), key=lambda one: one.report.loss)
        return best

    def _round(
        self,
        measured: InputStatistics,
        judge: Judge,
        weights: Mapping[str, Tensor],
        loss_rtn: float,
        scales: Tensor,
        exponent: float,
        clip: bool,
    ) -> _Candidate:
        """Quantize a group one way, and judge exactly what would be written."""
        group, norm_weight = measured.group, None
        if group.feeder is not None and not group.feeder_is_linear:
            feeder = self._block.get_submodule(group.feeder)
            norm_weight, scales = absorb_into_norm(feeder.weight, scales, group.norm_offset)
        quantized: dict[str, Quantized] = {}
        effective: dict[str, Tensor] = {}
        outside = 0
        for name, weight in weights.items():
            rows = self.row_scales.get(name)
            scaled = _scaled(weight, scales, rows)
            rounding = self._roundings[name]
            limits = _clip(name, scaled, scales, measured, rounding, self._options) if clip else None
            quantized[name] = quantize(scaled, rounding, limits)
            outside += 0 if limits is None else count_outside(scaled, limits)
            del scaled  # as large as what comes next
            effective[name] = quantized[name].dequantize().div_(scales)
            if rows is not None:
                effective[name].mul_(rows.unsqueeze(1))
        report = GroupReport(
            group.name,
            exponent,
            clip,
            loss_rtn,
            judge.loss(effective),
            weights=_count(weights),
            weights_outside=outside,
            scale_min=float(scales.min()),
            scale_median=float(scales.median()),
            scale_max=float(scales.max()),
        )
        return _Candidate(scales, norm_weight, quantized, report)


def _scaled(weight: Tensor, columns: Tensor | None, rows: Tensor | None) -> Tensor:
    """A weight with its columns multiplied and its rows divided, in memory of its own, float32 [N, K].

    A product of 16 bits and float32 would make a copy in float32 on the way; this makes none.
    """
    scaled = weight.to(torch.float32, copy=True)
    if columns is not None:
        scaled.mul_(columns)
    return scaled if rows is None else scaled.div_(rows.unsqueeze(1))


def _plain(
    name: str, weights: Mapping[str, Tensor], roundings: Roundings, ones: Tensor, loss: float
) -> _Candidate:
    """Rounding to nearest and nothing else, so that its loss is that of rounding to the last bit."""
    quantized = {linear: quantize(weight, roundings[linear]) for linear, weight in weights.items()}
    report = GroupReport(name, 0.0, False, loss, loss, _count(weights))
    return _Candidate(ones, None, quantized, report)


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


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


def _keep_beside_scales(
    block: torch.nn.Module, group: LinearGroup, kept: _Candidate, result: BlockResult, where: str
) -> None:
    """Write the norm that feeds a group, and what else reads it, with the group's scales absorbed."""
    assert kept.norm_weight is not None
    assert group.feeder is not None
    result.dense[f"{group.feeder}.weight"] = kept.norm_weight
    bias = getattr(block.get_submodule(group.feeder), "bias", None)
    if bias is not None:
        result.dense[f"{group.feeder}.bias"] = half(bias / kept.scales, f"{where}.{group.feeder}.bias")
    for name in group.followers:
        weight = block.get_submodule(name).weight
        result.dense[f"{name}.weight"] = half(weight * kept.scales, f"{where}.{name}.weight")


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
