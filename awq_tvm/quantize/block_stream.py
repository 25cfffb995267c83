"""The model's blocks, one after the other: read, measured, quantized, noted in the journal, forgotten."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from awq_tvm.checkpoint import Checkpoint, QuantizedWeight
from awq_tvm.memory import MemoryWatch, give_back_freed
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.quantize.architecture import architectures_of
from awq_tvm.quantize.awq import BlockResult, GroupReport, quantize_block_rtn
from awq_tvm.quantize.block_calls import catch_block_inputs
from awq_tvm.quantize.block_step import BlockTask, quantize_block
from awq_tvm.quantize.device import place_buffers, placed, taken_back
from awq_tvm.quantize.families import family_of
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED, HiddenStates
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.rounding_plan import RoundingPlan
from awq_tvm.quantize.torch_model import build_skeleton, empty, fill, outside_blocks


@dataclass(frozen=True, slots=True)
class BlockReport:
    """How one block fared.

    Attributes:
        index: of the block, from 0.
        loss_before: mean squared change of the block's output by rounding to nearest, None without
            calibration.
        loss_after: by what was kept, None without calibration.
        seconds: it took.
        groups: its groups of linears; empty without calibration.
        peak_memory_bytes: of this process while the block was done.
        short_experts: how many of its experts were chosen for too few tokens, and so were measured on all.
    """

    index: int
    loss_before: float | None
    loss_after: float | None
    seconds: float
    groups: tuple[GroupReport, ...]
    peak_memory_bytes: int
    short_experts: int = 0

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> BlockReport:
        """Read back what `asdict` made of a report."""
        return cls(**{**note, "groups": tuple(GroupReport(**group) for group in note["groups"])})


class BlockStream:
    """Quantizes a model block by block; in memory are one block's weights, and a sample's activations at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        journal: Journal,
        plan: RoundingPlan,
        token_ids: npt.NDArray[np.int64] | None,
        *,
        loss_mask: npt.NDArray[np.bool_] | None = None,
        streams: Sequence[str] = (FULL,),
    ) -> None:
        """Prepare the run.

        Args:
            checkpoint: the model.
            journal: where finished blocks and hidden states are, and go.
            plan: how each linear is rounded.
            token_ids: calibration samples, int64 [S, L]; None rounds to nearest.
            loss_mask: tokens of the samples that count in losses, bool [S, L]; None for all.
            streams: the streams of hidden states to keep: FULL, and QUANTIZED where a step asks for it.
        """
        self._family = family_of(checkpoint.config)
        self._checkpoint, self._journal, self._plan = checkpoint, journal, plan
        self._token_ids, self._loss_mask, self._streams = token_ids, loss_mask, streams
        self._model = build_skeleton(checkpoint.config)
        self._blocks = self._model.get_submodule(self._family.blocks)
        self._architectures = architectures_of(self._model, self._family)
        place_buffers(self._model)
        self._arguments: list[dict[str, Any]] = []
        self._inputs: dict[str, HiddenStates] = {}

    def run(self, options: AwqOptions, progress: ProgressCallback) -> tuple[BlockReport, ...]:
        """Quantize all blocks that the journal does not have yet.

        Args:
            options: of the search; not used without calibration.
            progress: told after every block.

        Returns:
            A report for each block, also of those that an earlier run finished.
        """
        total, first = len(self._blocks), self._journal.finished
        reports = [BlockReport.from_note(self._journal.note(index)) for index in range(first)]
        if first < total and self._token_ids is not None:
            self._catch_inputs(self._token_ids)
        started = time.monotonic()
        # What wrote the calibration text is gone, and should not be counted for the blocks.
        give_back_freed()
        with MemoryWatch() as memory:
            for index in range(first, total):
                report = self._quantize_block(index, options, memory)
                reports.append(report)
                left = (time.monotonic() - started) / (index + 1 - first) * (total - index - 1)
                progress(ProgressEvent("block", index + 1, total, _describe(report, left)))
        return tuple(reports)

    def _catch_inputs(self, token_ids: npt.NDArray[np.int64]) -> None:
        """Learn what every block is called with, and what enters the first one that is left to do."""
        outside = outside_blocks(self._model, self._family)
        for name, module in outside.items():
            fill(module, name, self._checkpoint)
        samples = placed(np.ascontiguousarray(token_ids))
        first, self._arguments = catch_block_inputs(self._model, self._family, samples[:1])
        self._inputs = self._journal.read_hidden()
        if not self._inputs:
            shape = (samples.shape[0], samples.shape[1], first.shape[2])
            entering = self._journal.begin_stream(FULL, 0, shape)
            entering.append(first)
            for sample in samples[1:]:
                entering.append(catch_block_inputs(self._model, self._family, sample.unsqueeze(0))[0])
            # Before the first block nothing is quantized yet, so all streams are one file.
            self._inputs = dict.fromkeys(self._streams, entering.finish())
        for module in outside.values():
            empty(module)

    def _quantize_block(self, index: int, options: AwqOptions, memory: MemoryWatch) -> BlockReport:
        started = time.monotonic()
        where = f"{self._family.blocks}.{index}"
        block, architecture = self._blocks[index], self._architectures[index]
        fill(block, where, self._checkpoint, as_stored=architecture.linears)
        roundings = self._plan.of_block(where, architecture.linears)
        leaving: dict[str, HiddenStates] = {}
        if self._token_ids is None:
            result = quantize_block_rtn(block, architecture, roundings, where)
        else:
            task = BlockTask(
                block=block,
                where=where,
                architecture=architecture,
                arguments=self._arguments[index],
                inputs=self._inputs,
                roundings=roundings,
                search_tokens=options.search_tokens,
                loss_mask=_as_mask(self._loss_mask, self._token_ids.shape),
            )
            shape = self._inputs[FULL].shape
            result, leaving[FULL] = quantize_block(
                task, self._journal.begin_stream(FULL, index + 1, shape), options
            )
            if QUANTIZED in self._streams:
                leaving[QUANTIZED] = self._advance_quantized(task, result, index + 1)
        seconds, groups = time.monotonic() - started, tuple(result.groups)
        report = BlockReport(
            index,
            result.loss_rtn,
            result.loss,
            seconds,
            groups,
            peak_memory_bytes=memory.take_peak(),
            short_experts=result.short_experts,
        )
        self._journal.record(_to_arrays(result), asdict(report), leaving)
        self._inputs = leaving
        empty(block)
        return report

    def _advance_quantized(self, task: BlockTask, result: BlockResult, next_block: int) -> HiddenStates:
        """Run the quantized block on what comes out of the quantized blocks before it."""
        entering, weights = task.inputs[QUANTIZED], result.weights()
        leaving = self._journal.begin_stream(QUANTIZED, next_block, entering.shape)
        for sample in range(entering.shape[0]):
            leaving.append(task.run(entering[sample : sample + 1], weights))
        return leaving.finish()


def _as_mask(loss_mask: npt.NDArray[np.bool_] | None, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool) if loss_mask is None else placed(loss_mask.copy())


def _to_arrays(result: BlockResult) -> dict[str, npt.NDArray[Any]]:
    arrays = {f"dense.{name}": taken_back(tensor) for name, tensor in result.dense.items()}
    for name, weight in result.quantized.items():
        arrays[f"quantized.{name}.q"] = taken_back(weight.q)
        arrays[f"quantized.{name}.scales"] = taken_back(weight.scales)
        arrays[f"quantized.{name}.zeros"] = taken_back(weight.zeros)
    return arrays


def from_arrays(
    arrays: Mapping[str, npt.NDArray[Any]], where: str, plan: RoundingPlan
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, QuantizedWeight]]:
    """Read a finished block back.

    Args:
        arrays: of the journal's file.
        where: name of the block.
        plan: how each linear was rounded.

    Returns:
        Dense tensors and quantized linears, by path below the block.
    """
    # A safetensors file hands its tensors out in no fixed order; what is written from here must have one.
    names = sorted(arrays)
    dense = {name.removeprefix("dense."): arrays[name] for name in names if name.startswith("dense.")}
    linears = [name[len("quantized.") : -len(".q")] for name in names if name.endswith(".q")]
    quantized = {}
    for name in linears:
        q, scales, zeros = (arrays[f"quantized.{name}.{part}"] for part in ("q", "scales", "zeros"))
        rounding = plan.of(f"{where}.{name}")
        quantized[name] = QuantizedWeight(q, scales, zeros, rounding.bits, rounding.width(q.shape[1]))
    return dense, quantized


def _describe(report: BlockReport, seconds_left: float) -> str:
    left = f"{seconds_left:.0f} s left"
    if report.loss_before is None or report.loss_after is None:
        return left
    return f"loss {report.loss_before:.3g} -> {report.loss_after:.3g}, {left}"
