"""How much each linear's bit width costs the model, measured block by block on calibration tokens.

One set of linears at a time is rounded to nearest and the block is run: what it changes is |h' - h|^2 / |h|^2 of the
block's output, averaged over tokens. The search for scales and clips, run on the block at each width, then says
which part of that it leaves of each set. How much of a change arrives at the end of the model differs from block to
block: the first blocks' is drowned or amplified by all that follow. So of every block one changed output, with all
of its linears rounded, goes on through the rest of the model, and what has become of it behind the last norm scales
the costs of the block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.quantize.activations import InputStatistics, run_and_measure
from awq_tvm.quantize.architecture import architectures_of
from awq_tvm.quantize.awq import BlockResult, quantize_block_awq
from awq_tvm.quantize.bit_allocation import WIDTHS, Sensitivity
from awq_tvm.quantize.block_calls import catch_block_inputs, end_of_model
from awq_tvm.quantize.device import place_buffers, placed
from awq_tvm.quantize.families import Family, family_of
from awq_tvm.quantize.group_quantize import Rounding, round_trip
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.rounding_plan import Roundings
from awq_tvm.quantize.torch_model import build_skeleton, empty, fill, outside_blocks

# From here on the search gains nothing that counts.
_FINE = 8
# The width at which it is measured how far a change travels.
_USUAL = 3
# The search only has to say what is left, not to find the very best.
_SCALE_STEPS = 8
_TINY = 1e-30


def measure_sensitivities(
    checkpoint: Checkpoint,
    token_ids: npt.NDArray[np.int64],
    rounding: Rounding,
    *,
    options: AwqOptions,
    progress: ProgressCallback,
    loss_mask: npt.NDArray[np.bool_] | None = None,
) -> list[Sensitivity]:
    """Measure all linears of a model's blocks at every width of `WIDTHS`.

    Args:
        checkpoint: the model; one block of it is in memory at a time.
        token_ids: calibration samples, int64 [S, L].
        rounding: group size and symmetry; its bits do not count.
        options: of the search; its tokens are what is measured on, rounded up to whole samples.
        progress: told after every block.
        loss_mask: tokens that count, bool [S, L]; None for all.

    Returns:
        The sensitivities, in the order of the model.

    Raises:
        CheckpointError: an activation is NaN or infinite.
    """
    family = family_of(checkpoint.config)
    model = build_skeleton(checkpoint.config)
    architectures = architectures_of(model, family)
    place_buffers(model)
    count = -(-options.search_tokens // token_ids.shape[1])
    samples = placed(token_ids[:count].copy())
    if loss_mask is None:
        loss_mask = np.ones(token_ids.shape, dtype=bool)
    counts = placed(loss_mask[:count].copy())
    quick = replace(options, scale_steps=min(options.scale_steps, _SCALE_STEPS))
    hidden, arguments = _enter(model, family, checkpoint, samples)
    blocks = list(model.get_submodule(family.blocks).children())
    found: list[list[Sensitivity]] = []
    travellers: list[_Traveller] = []
    for index, (block, architecture) in enumerate(zip(blocks, architectures, strict=True)):
        where = f"{family.blocks}.{index}"
        fill(block, where, checkpoint, as_stored=architecture.linears)
        run = _Runner(block, arguments[index])
        outputs: list[Tensor] = []
        statistics = run_and_measure(
            block,
            architecture.groups,
            hidden,
            arguments[index],
            outputs.append,
            group_widths={
                group.name: rounding.width(block.get_submodule(group.linears[0]).in_features)
                for group in architecture.groups
            },
            search_samples=hidden.shape[0],
            token_stride=1,
            where=where,
            loss_mask=counts,
        )
        wanted = torch.cat(outputs)
        roundings = {
            bits: dict.fromkeys(architecture.linears, Rounding(bits, rounding.group_size, rounding.symmetric))
            for bits in WIDTHS
        }
        left = {
            bits: _left_by_search(quantize_block_awq(block, architecture, statistics, of_bits, quick, where))
            for bits, of_bits in roundings.items()
            if bits < _FINE
        }
        found.append([])
        for one in statistics:
            losses = {
                bits: _relative_change(
                    run.all(hidden, _rounded(block, one.group.linears, of_bits)), wanted, counts
                )
                for bits, of_bits in roundings.items()
            }
            losses |= {bits: losses[bits] * part[one.group.name] for bits, part in left.items()}
            found[-1].append(_sensitivity(block, one, where, losses))
        for traveller in travellers:
            traveller.hidden = run(traveller.hidden, {})
        changed = run(hidden[:1], _rounded(block, architecture.linears, roundings[_USUAL]))
        travellers.append(_Traveller(changed, _relative_change(changed, wanted[:1], counts[:1])))
        hidden = wanted
        empty(block)
        progress(ProgressEvent("measure", index + 1, len(blocks), "bit widths"))
    for name, module in outside_blocks(model, family).items():
        fill(module, name, checkpoint)

    def end(leaving: Tensor) -> Tensor:
        return end_of_model(model, family, samples[:1], leaving, as_tuple=run.returns_tuple)

    behind = end(hidden[:1])
    gains = [
        _relative_change(end(one.hidden), behind, counts[:1]) / max(one.change, _TINY) for one in travellers
    ]
    return [
        replace(one, losses={bits: loss * gain for bits, loss in one.losses.items()})
        for of_block, gain in zip(found, gains, strict=True)
        for one in of_block
    ]


@dataclass
class _Traveller:
    """A block's changed output on its way through the rest of the model.

    Attributes:
        hidden: float32 [1, L, H].
        change: relative, when it set out.
    """

    hidden: Tensor
    change: float


class _Runner:
    """A block that is run with some weights replaced."""

    def __init__(self, block: torch.nn.Module, arguments: Mapping[str, Any]) -> None:
        self.block, self._arguments = block, dict(arguments)
        self.returns_tuple = False

    def all(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """All samples, one at a time, float32 [S, L, H] -> [S, L, H]."""
        return torch.cat([self(hidden[sample : sample + 1], weights) for sample in range(hidden.shape[0])])

    def __call__(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """One sample, float32 [1, L, H] -> [1, L, H]."""
        output = torch.func.functional_call(self.block, dict(weights), (hidden,), self._arguments)
        self.returns_tuple = isinstance(output, tuple)
        return output[0] if self.returns_tuple else output


def _enter(
    model: PreTrainedModel, family: Family, checkpoint: Checkpoint, samples: Tensor
) -> tuple[Tensor, list[dict[str, Any]]]:
    """What enters the first block, float32 [S, L, H], and what every block is called with for a batch of one."""
    outside = outside_blocks(model, family)
    for name, module in outside.items():
        fill(module, name, checkpoint)
    caught = [catch_block_inputs(model, family, sample.unsqueeze(0)) for sample in samples]
    for module in outside.values():
        empty(module)
    return torch.cat([hidden for hidden, _ in caught]), caught[0][1]


def _sensitivity(
    block: torch.nn.Module, statistics: InputStatistics, where: str, losses: Mapping[int, float]
) -> Sensitivity:
    """What was measured of one set of linears that read the same input."""
    names = statistics.group.linears
    weights = [block.get_submodule(name).weight for name in names]
    return Sensitivity(
        linears=tuple(f"{where}.{name}" for name in names),
        weights=sum(weight.numel() for weight in weights),
        scales=sum(weight.shape[0] * statistics.moments.shape[0] for weight in weights),
        losses=losses,
    )


def _rounded(block: torch.nn.Module, names: Iterable[str], roundings: Roundings) -> dict[str, Tensor]:
    """Weights of a block, rounded to nearest, by the names of the parameters."""
    return {f"{name}.weight": round_trip(block.get_submodule(name).weight, roundings[name]) for name in names}


def _left_by_search(result: BlockResult) -> dict[str, float]:
    """By group of linears, the loss after the search as a part of that of rounding to nearest."""
    return {group.name: group.loss / group.loss_rtn if group.loss_rtn else 1.0 for group in result.groups}


def _relative_change(changed: Tensor, wanted: Tensor, loss_mask: Tensor) -> float:
    """Mean over the tokens that count of |h' - h|^2 / |h|^2."""
    change = (changed - wanted).double().square().sum(-1)
    relative = change / wanted.double().square().sum(-1).clamp(min=_TINY)
    return float(relative[loss_mask].mean())
