"""The model's blocks, one after the other: read, measured, quantized, noted in the journal, forgotten."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from awq_tvm.checkpoint import Checkpoint, QuantizedWeight
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.quantize.activations import catch_block_inputs, run_and_measure
from awq_tvm.quantize.architecture import Architecture, architecture_of
from awq_tvm.quantize.awq import AwqOptions, BlockResult, GroupReport, quantize_block_awq, quantize_block_rtn
from awq_tvm.quantize.group_quantize import Rounding, round_trip
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.torch_model import build_skeleton, empty, fill


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
    """

    index: int
    loss_before: float | None
    loss_after: float | None
    seconds: float
    groups: tuple[GroupReport, ...]

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> BlockReport:
        """Read back what `asdict` made of a report."""
        return cls(**{**note, "groups": tuple(GroupReport(**group) for group in note["groups"])})


class BlockStream:
    """Quantizes a model block by block; at most one block's weights and activations are in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        journal: Journal,
        rounding: Rounding,
        token_ids: npt.NDArray[np.int64] | None,
    ) -> None:
        """Prepare the run.

        Args:
            checkpoint: the model.
            journal: where finished blocks are, and go.
            rounding: bits and group size.
            token_ids: calibration samples, int64 [S, L]; None rounds to nearest.
        """
        self.architecture: Architecture = architecture_of(checkpoint.config)
        self._checkpoint, self._journal, self._rounding, self._token_ids = (
            checkpoint,
            journal,
            rounding,
            token_ids,
        )
        self._model = build_skeleton(checkpoint.config)
        self._blocks = self._model.get_submodule(self.architecture.blocks)
        self._arguments: list[dict[str, Any]] = []
        self._hidden = torch.empty(0)

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
            self._catch_inputs()
        started = time.monotonic()
        for index in range(first, total):
            report = self._quantize_block(index, options)
            reports.append(report)
            left = (time.monotonic() - started) / (index + 1 - first) * (total - index - 1)
            progress(ProgressEvent("block", index + 1, total, _describe(report, left)))
        return tuple(reports)

    def _catch_inputs(self) -> None:
        """Learn what every block is called with, and what enters the first one that is left to do."""
        token_ids = torch.from_numpy(np.ascontiguousarray(self._token_ids))
        embedding = self._model.get_input_embeddings()
        fill(embedding, "model.embed_tokens", self._checkpoint)
        fill(self._model.get_submodule("model.norm"), "model.norm", self._checkpoint)
        samples = [
            catch_block_inputs(self._model, self.architecture, sample.unsqueeze(0)) for sample in token_ids
        ]
        self._arguments = samples[0][1]
        empty(embedding)
        if self._journal.finished:
            self._hidden = torch.from_numpy(self._journal.read_hidden()["hidden"])
        else:
            self._hidden = torch.cat([hidden for hidden, _ in samples])

    def _quantize_block(self, index: int, options: AwqOptions) -> BlockReport:
        started = time.monotonic()
        where = f"{self.architecture.blocks}.{index}"
        block = self._blocks[index]
        fill(block, where, self._checkpoint)
        before = after = None
        hidden: dict[str, npt.NDArray[Any]] = {}
        if self._token_ids is None:
            result = quantize_block_rtn(block, self.architecture, self._rounding, where)
        else:
            result, before, after = self._search_block(block, index, where, options)
            hidden = {"hidden": self._hidden.numpy()}
        report = BlockReport(index, before, after, time.monotonic() - started, tuple(result.groups))
        self._journal.record(_to_arrays(result), asdict(report), hidden)
        empty(block)
        return report

    def _search_block(
        self, block: torch.nn.Module, index: int, where: str, options: AwqOptions
    ) -> tuple[BlockResult, float, float]:
        samples, length, _ = self._hidden.shape
        search_samples = min(samples, -(-options.search_tokens // length))
        outputs, statistics = run_and_measure(
            block,
            self.architecture.groups,
            self._hidden,
            self._arguments[index],
            group_widths={
                group.name: self._rounding.width(block.get_submodule(group.linears[0]).in_features)
                for group in self.architecture.groups
            },
            search_samples=search_samples,
            token_stride=max(1, samples * length // options.search_tokens),
            where=where,
        )
        head_dim = int(self._checkpoint.config["head_dim"])
        result = quantize_block_awq(
            block, self.architecture, statistics, self._rounding, options, head_dim, where
        )
        rounded = {
            f"{name}.weight": round_trip(block.get_submodule(name).weight, self._rounding)
            for name in self.architecture.linears
        }
        kept = {f"{name}.weight": weight.dequantize() for name, weight in result.quantized.items()}
        kept |= {name: weight.float() for name, weight in result.dense.items()}
        losses = [
            self._block_loss(block, index, weights, outputs[:search_samples]) for weights in (rounded, kept)
        ]
        self._hidden = outputs
        return result, losses[0], losses[1]

    def _block_loss(
        self, block: torch.nn.Module, index: int, weights: Mapping[str, Tensor], expected: Tensor
    ) -> float:
        """Mean squared change of the block's output when weights are replaced."""
        total = 0.0
        for sample, wanted in enumerate(expected):
            inputs = (self._hidden[sample : sample + 1],)
            output = torch.func.functional_call(block, dict(weights), inputs, self._arguments[index])
            output = output[0] if isinstance(output, tuple) else output
            total += float(torch.linalg.vector_norm(output[0] - wanted, dtype=torch.float64)) ** 2
        return total / float(expected.numel())


def _to_arrays(result: BlockResult) -> dict[str, npt.NDArray[Any]]:
    arrays = {f"dense.{name}": tensor.numpy() for name, tensor in result.dense.items()}
    for name, weight in result.quantized.items():
        arrays[f"quantized.{name}.q"] = weight.q.numpy()
        arrays[f"quantized.{name}.scales"] = weight.scales.numpy()
        arrays[f"quantized.{name}.zeros"] = weight.zeros.numpy()
    return arrays


def from_arrays(
    arrays: Mapping[str, npt.NDArray[Any]], rounding: Rounding
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, QuantizedWeight]]:
    """Read a finished block back.

    Args:
        arrays: of the journal's file.
        rounding: bits and group size.

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
        quantized[name] = QuantizedWeight(q, scales, zeros, rounding.bits, rounding.width(q.shape[1]))
    return dense, quantized


def _describe(report: BlockReport, seconds_left: float) -> str:
    left = f"{seconds_left:.0f} s left"
    if report.loss_before is None or report.loss_after is None:
        return left
    return f"loss {report.loss_before:.3g} -> {report.loss_after:.3g}, {left}"
