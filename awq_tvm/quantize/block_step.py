"""One block, quantized: what may be looked at, the steps in their order, and how good the result is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from awq_tvm.memory import give_back_freed
from awq_tvm.quantize.activations import InputStatistics, Samples, run_and_measure, that_count
from awq_tvm.quantize.architecture import Architecture
from awq_tvm.quantize.awq import BlockResult, quantize_block_awq, quantize_block_rtn
from awq_tvm.quantize.group_quantize import Quantized
from awq_tvm.quantize.hidden_states import FULL, HiddenStates, HiddenStatesWriter
from awq_tvm.quantize.judge import comparable, judge_of
from awq_tvm.quantize.learned_rounding import learn_rounding, relative_error
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.rounding_plan import Roundings


@dataclass(frozen=True)
class BlockTask:
    """A block to quantize, and all that a step may look at.

    Attributes:
        block: filled, in full precision; steps leave it as it is.
        where: its name, for messages.
        architecture: names its linears.
        arguments: what it is called with besides hidden states, for a batch of one.
        inputs: the streams that enter it, by name: FULL, and QUANTIZED if the run keeps that.
        roundings: of its linears; those of a group have one group size.
        search_tokens: tokens on which modules and the block are run to judge them.
        loss_mask: tokens that count in losses, bool [S, L]; at least one in the first sample.
    """

    block: torch.nn.Module
    where: str
    architecture: Architecture
    arguments: Mapping[str, Any]
    inputs: Mapping[str, HiddenStates]
    roundings: Roundings
    search_tokens: int
    loss_mask: Tensor

    @property
    def search_samples(self) -> int:
        """Samples that hold the search tokens."""
        samples, length, _ = self.inputs[FULL].shape
        return min(samples, -(-self.search_tokens // length))

    def run(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The block's output with some parameters replaced, float32 [1, L, H] -> float32 [1, L, H]."""
        output = torch.func.functional_call(self.block, dict(weights), (hidden,), dict(self.arguments))
        return output[0] if isinstance(output, tuple) else output

    def run_quantized(self, hidden: Tensor, result: BlockResult) -> Tensor:
        """The block's output as it would be written, float32 [1, L, H] -> float32 [1, L, H].

        Each linear is dequantized when it is called and forgotten then: all at once would take as much memory as
        the block itself.
        """

        def take(linear: torch.nn.Linear, _inputs: Any, quantized: Quantized) -> None:
            kept[linear] = linear.weight
            linear.weight = torch.nn.Parameter(quantized.dequantize(), requires_grad=False)

        def put_back(linear: torch.nn.Linear, *_: Any) -> None:
            linear.weight = kept.pop(linear)

        kept: dict[torch.nn.Linear, torch.nn.Parameter] = {}
        with ExitStack() as hooks:
            for name, quantized in result.quantized.items():
                linear = self.block.get_submodule(name)
                hooks.callback(linear.register_forward_pre_hook(partial(take, quantized=quantized)).remove)
                hooks.callback(linear.register_forward_hook(put_back, always_call=True).remove)
            return self.run(hidden, {name: weight.float() for name, weight in result.dense.items()})


def quantize_block(
    task: BlockTask, outputs: HiddenStatesWriter, options: AwqOptions
) -> tuple[BlockResult, HiddenStates]:
    """Quantize a block on the hidden states that enter it.

    Args:
        task: the block and its inputs.
        outputs: where the block's full-precision output goes.
        options: of the search.

    Returns:
        The quantized block, its losses measured on the search samples of the FULL stream; and the whole FULL
        stream that leaves it.

    Raises:
        CheckpointError: an activation is NaN or infinite.
        AssertionError: with `options.guard`, something is worse than by rounding to nearest after all.
        UnsupportedError: a norm or bias is too large for float16.
        ResourceError: the output cannot be written.
    """
    samples, length, _ = task.inputs[FULL].shape
    statistics = run_and_measure(
        task.block,
        task.architecture.groups,
        task.inputs[FULL],
        task.arguments,
        outputs.append,
        group_widths={
            group.name: task.roundings[group.linears[0]].width(
                task.block.get_submodule(group.linears[0]).in_features
            )
            for group in task.architecture.groups
        },
        search_samples=task.search_samples,
        token_stride=max(1, samples * length // task.search_tokens),
        where=task.where,
        loss_mask=task.loss_mask,
    )
    # Pieces that were worked on are small, and the C library would keep them: hundreds of megabytes in all.
    give_back_freed()
    result = quantize_block_awq(
        task.block, task.architecture, statistics, task.roundings, options, task.where
    )
    targets = outputs.finish()
    rounded = quantize_block_rtn(task.block, task.architecture, task.roundings, task.where)
    rounded.groups = [group.as_rounded() for group in result.groups]
    give_back_freed()
    for candidate in (rounded, result):
        candidate.loss = block_loss(task, candidate, task.inputs[FULL], targets)
        candidate.loss_rtn = rounded.loss
    if options.guard:
        result = best_of([result, rounded])
    if options.learn_steps:
        result = _learn(task, result, statistics, targets, options)
    if options.guard:
        require_never_worse(result, task.where)
    result.short_experts = sum(one.short for one in statistics)
    return result, targets


def _learn(
    task: BlockTask,
    start: BlockResult,
    statistics: Sequence[InputStatistics],
    targets: HiddenStates,
    options: AwqOptions,
) -> BlockResult:
    """Learn the block's rounding; keep it where it is better."""
    inputs = task.inputs[options.learn_from]
    learned = learn_rounding(
        task.block,
        task.arguments,
        start,
        {name: rounding.levels for name, rounding in task.roundings.items()},
        inputs,
        targets,
        task.loss_mask,
        steps=options.learn_steps,
        rate=options.learn_rate,
        scale_rate=options.learn_scale_rate,
        batch_tokens=options.learn_tokens,
    )
    learned.groups = []
    for measured, before in zip(statistics, start.groups, strict=True):
        linears = measured.group.linears
        loss = judge_of(task.block, measured).loss({name: learned.unscaled(name) for name in linears})
        if options.guard and not loss <= before.loss_rtn:
            learned.quantized.update({name: start.quantized[name] for name in linears})
            learned.groups.append(before)
        else:
            learned.groups.append(replace(before, loss=loss))
    learned.loss = block_loss(task, learned, task.inputs[FULL], targets)
    if options.guard and not (
        learned.loss <= (start.loss_rtn or 0.0)
        and _relative_loss(task, learned, inputs, targets) <= _relative_loss(task, start, inputs, targets)
    ):
        return start
    return learned


def _relative_loss(task: BlockTask, result: BlockResult, inputs: Samples, targets: Samples) -> float:
    """The error that learning lowers, on the search samples."""
    weights, errors = result.weights(), []
    for sample in range(task.search_samples):
        one, mask = slice(sample, sample + 1), task.loss_mask[sample]
        if bool(mask.any()):
            output = task.run(inputs[one], weights)
            output, target = that_count(output, mask), that_count(targets[one], mask)
            errors.append(float(relative_error(output, target)))
    return sum(errors) / len(errors)


def best_of(candidates: Sequence[BlockResult]) -> BlockResult:
    """The candidate with the least loss of the block's output, the first of equals."""
    return min(candidates, key=lambda one: math.inf if one.loss is None else one.loss)


def require_never_worse(result: BlockResult, where: str) -> None:
    """Assert that neither the block nor any group of its linears is worse than by rounding to nearest.

    Args:
        result: a block that was quantized with calibration.
        where: name of the block for the message.

    Raises:
        AssertionError: one is worse: a mistake in this program, not in what it was given.
    """
    losses = [(group.name, group.loss, group.loss_rtn) for group in result.groups]
    for name, loss, loss_rtn in [*losses, ("block", result.loss, result.loss_rtn)]:
        if loss is None or loss_rtn is None or not loss <= loss_rtn:
            raise AssertionError(f"{where}, {name}: loss {loss} is above {loss_rtn}, that of plain rounding")


def block_loss(task: BlockTask, result: BlockResult, inputs: Samples, targets: Samples) -> float:
    """Mean squared change of the block's output, as it would be written, on the search samples.

    Args:
        task: the block.
        result: how it is quantized.
        inputs: what enters it, float32 [S, L, H].
        targets: what should leave it, float32 [S, L, H].

    Returns:
        The mean square of output - target.
    """
    total, count = 0.0, 0
    for sample in range(task.search_samples):
        one = slice(sample, sample + 1)
        change = task.run_quantized(inputs[one], result).sub_(targets[one])
        change = that_count(change, task.loss_mask[sample])
        total += float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        count += change.numel()
    return comparable(total / count)
