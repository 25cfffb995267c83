"""One block, quantized: what may be looked at, the steps in their order, and how good the result is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from awq_tvm.quantize.activations import Samples, run_and_measure
from awq_tvm.quantize.architecture import Architecture
from awq_tvm.quantize.awq import AwqOptions, BlockResult, quantize_block_awq, quantize_block_rtn
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.hidden_states import FULL, HiddenStates, HiddenStatesWriter


@dataclass(frozen=True)
class BlockTask:
    """A block to quantize, and all that a step may look at.

    Attributes:
        block: filled, in full precision; steps leave it as it is.
        where: its name, for messages.
        architecture: names its linears.
        arguments: what it is called with besides hidden states, for a batch of one.
        inputs: the streams that enter it, by name: FULL, and QUANTIZED if the run keeps that.
        rounding: bits and group size.
        head_dim: channels of an attention head.
        search_tokens: tokens on which modules and the block are run to judge them.
    """

    block: torch.nn.Module
    where: str
    architecture: Architecture
    arguments: Mapping[str, Any]
    inputs: Mapping[str, HiddenStates]
    rounding: Rounding
    head_dim: int
    search_tokens: int

    @property
    def search_samples(self) -> int:
        """Samples that hold the search tokens."""
        samples, length, _ = self.inputs[FULL].shape
        return min(samples, -(-self.search_tokens // length))

    def run(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The block's output with some parameters replaced, float32 [1, L, H] -> float32 [1, L, H]."""
        output = torch.func.functional_call(self.block, dict(weights), (hidden,), dict(self.arguments))
        return output[0] if isinstance(output, tuple) else output


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
            group.name: task.rounding.width(task.block.get_submodule(group.linears[0]).in_features)
            for group in task.architecture.groups
        },
        search_samples=task.search_samples,
        token_stride=max(1, samples * length // task.search_tokens),
        where=task.where,
    )
    result = quantize_block_awq(
        task.block, task.architecture, statistics, task.rounding, options, task.head_dim, task.where
    )
    del statistics
    targets = outputs.finish()
    rounded = quantize_block_rtn(task.block, task.architecture, task.rounding, task.where)
    result.loss_rtn = block_loss(task, rounded, task.inputs[FULL], targets)
    result.loss = block_loss(task, result, task.inputs[FULL], targets)
    return result, targets


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
    weights, total, count = result.weights(), 0.0, 0
    for sample in range(task.search_samples):
        one = slice(sample, sample + 1)
        change = task.run(inputs[one], weights).sub_(targets[one])
        total += float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        count += change.numel()
    return total / count
