"""What flows through a block: its inputs caught once, its linears' inputs measured while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from awq_tvm.errors import CheckpointError
from awq_tvm.quantize.architecture import LinearGroup
from awq_tvm.quantize.block_calls import run_block
from awq_tvm.quantize.plain_linears import experts_in

# Above this many inputs the full second moment of a linear's input costs more memory than it saves time:
# 8192^2 float32 is 256 MB.
_FULL_MOMENT_LIMIT = 8192

FEWEST_TOKENS_OF_AN_EXPERT = 128
"""An expert that was chosen for fewer tokens is measured on all: as many as the largest usual group has inputs."""


class Samples(Protocol):
    """Hidden states [S, L, H] from which a range of samples can be read: a tensor, or a stream on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(S, L, H)."""
        ...

    def __getitem__(self, samples: slice) -> Tensor:
        """Some samples, float32 [n, L, H]."""
        ...


@dataclass
class Call:
    """The arguments a module was called with, and which tokens of its output count: bool [L], None for all."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss_mask: Tensor | None = None


def that_count(hidden: Tensor, loss_mask: Tensor) -> Tensor:
    """The tokens of a sample that count in losses.

    Args:
        hidden: [1, L, H] or [L, H]; or [n, H] with the tokens that a router picked: these count all.
        loss_mask: bool [L].

    Returns:
        [1, n, H] or [n, H], the very tensor where all count.
    """
    # A router picks a token once, and in their order: as many as there are is all of them.
    if hidden.shape[-2] != loss_mask.shape[0] or bool(loss_mask.all()):
        return hidden
    return hidden[..., loss_mask, :]


@dataclass
class InputStatistics:
    """What a search needs to know of the input of one group of linears, with X[T, K] all its tokens that count.

    Attributes:
        group: the linears.
        mean_absolute: float32 [K], mean of |X|.
        moments: float32 [G, g, g], (X' X) / T of each group of g input channels.
        moment: float32 [K, K], (X' X) / T, or None where the group is judged by running a module.
        calls: of the module the group is judged by, on the tokens kept for the search; empty where moment is
            enough.
        short: the linears are of an expert that got too few tokens; all this is of what it makes of all tokens.
    """

    group: LinearGroup
    mean_absolute: Tensor
    moments: Tensor
    moment: Tensor | None
    calls: list[Call] = field(default_factory=list)
    short: bool = False


def run_and_measure(
    block: torch.nn.Module,
    groups: Sequence[LinearGroup],
    hidden: Samples,
    kwargs: Mapping[str, Any],
    keep_output: Callable[[Tensor], None],
    *,
    group_widths: Mapping[str, int],
    search_samples: int,
    token_stride: int,
    where: str,
    loss_mask: Tensor | None = None,
) -> list[InputStatistics]:
    """Run a block on all samples, one at a time, and measure the inputs of its linears.

    Experts that were hardly chosen are run once more, on all tokens: what the calibration text does not ask of them
    another text may.

    Args:
        block: a filled block.
        groups: its linears.
        hidden: float32 [S, L, H], what enters the block.
        kwargs: what else the block is called with, for a batch of one.
        keep_output: takes what leaves the block, float32 [1, L, H], sample after sample.
        group_widths: inputs in a quantization group, by the name of the group of linears.
        search_samples: of how many samples the calls are kept for modules that mix tokens.
        token_stride: every how many tokens are kept for modules that do not.
        where: name of the block for messages.
        loss_mask: bool [S, L], the tokens that are measured; None for all. The others only flow along.

    Returns:
        The statistics of each group.

    Raises:
        CheckpointError: an activation is NaN or infinite; layer and sample are named.
    """
    if loss_mask is None:
        loss_mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    meters = [_Meter(group, block, group_widths[group.name]) for group in groups]

    def run(sample: int, measuring: Sequence[_Meter]) -> Tensor:
        with _metering(
            block,
            measuring,
            sample,
            loss_mask[sample],
            keep=sample < search_samples,
            stride=token_stride,
            where=where,
        ):
            return run_block(block, hidden[sample : sample + 1], kwargs)

    for sample in range(hidden.shape[0]):
        output = run(sample, meters)
        _require_finite(output, where, sample)
        keep_output(output)
    short = [meter for meter in meters if meter.group.expert_of and meter.tokens < FEWEST_TOKENS_OF_AN_EXPERT]
    if short:
        for meter in short:
            meter.start_anew_on_all_tokens()
        with _asked_all(block, [meter.group for meter in short]):
            for sample in range(hidden.shape[0]):
                run(sample, short)
    return [meter.finish() for meter in meters]


@contextmanager
def _asked_all(block: torch.nn.Module, groups: Sequence[LinearGroup]) -> Iterator[None]:
    """Let the experts that have these groups, and no others, answer for all tokens."""
    numbers: dict[str, set[int]] = {}
    for group in groups:
        below = group.linears[0].removeprefix(f"{group.expert_of}.")
        numbers.setdefault(group.expert_of, set()).add(int(below.partition(".")[0]))
    sets = experts_in(block)
    try:
        for path, asked in numbers.items():
            sets[path].asked_all = tuple(sorted(asked))
        yield
    finally:
        for experts in sets.values():
            experts.asked_all = None


class _Meter:
    """Sums over the input of one group of linears."""

    def __init__(self, group: LinearGroup, block: torch.nn.Module, group_width: int) -> None:
        self.group, self.group_width, self.short = group, group_width, False
        self.width = block.get_submodule(group.linears[0]).in_features
        self.judged_by_moment = group.judged_by in group.linears and self.width <= _FULL_MOMENT_LIMIT
        self._start()

    def _start(self) -> None:
        self.tokens = 0
        self.absolute = torch.zeros(self.width, dtype=torch.float64)
        if self.judged_by_moment:
            self.moment = torch.zeros(self.width, self.width)
        else:
            self.moment = torch.zeros(self.width // self.group_width, self.group_width, self.group_width)
        self.calls: list[Call] = []

    def start_anew_on_all_tokens(self) -> None:
        """Forget what was measured on too few tokens."""
        self.short = True
        self._start()

    def measure(self, inputs: Tensor) -> None:
        tokens = inputs.reshape(-1, inputs.shape[-1])
        self.tokens += tokens.shape[0]
        self.absolute += tokens.abs().sum(dim=0, dtype=torch.float64)
        if self.judged_by_moment:
            self.moment.addmm_(tokens.T, tokens)
        else:
            columns = tokens.unflatten(1, (-1, self.group_width)).transpose(0, 1).contiguous()
            self.moment.baddbmm_(columns.transpose(1, 2), columns)

    def finish(self) -> InputStatistics:
        mean_absolute = (self.absolute / self.tokens).float()
        moment = self.moment / self.tokens
        if not self.judged_by_moment:
            return InputStatistics(self.group, mean_absolute, moment, None, self.calls, self.short)
        blocks = _diagonal_blocks(moment, self.group_width)
        return InputStatistics(self.group, mean_absolute, blocks, moment, short=self.short)


def _diagonal_blocks(moment: Tensor, width: int) -> Tensor:
    starts = range(0, moment.shape[0], width)
    return torch.stack([moment[start : start + width, start : start + width] for start in starts])


@contextmanager
def _metering(
    block: torch.nn.Module,
    meters: Sequence[_Meter],
    sample: int,
    loss_mask: Tensor,
    *,
    keep: bool,
    stride: int,
    where: str,
) -> Iterator[None]:
    """Hooks for the time of one sample."""

    def measure(meter: _Meter) -> Any:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            _require_finite(args[0], f"{where}.{meter.group.linears[0]}", sample)
            meter.measure(that_count(args[0], loss_mask))

        return hook

    def record(meter: _Meter) -> Any:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if meter.group.mixes_tokens:
                if keep:
                    meter.calls.append(Call(args, kwargs, loss_mask))
            else:
                kept = that_count(args[0], loss_mask)[..., ::stride, :]
                meter.calls.append(Call((kept.contiguous(), *args[1:]), kwargs))

        return hook

    with ExitStack() as hooks:
        for meter in meters:
            linear = block.get_submodule(meter.group.measured_at)
            hooks.callback(linear.register_forward_pre_hook(measure(meter)).remove)
            if not meter.judged_by_moment:
                judge = block.get_submodule(meter.group.judged_by)
                hooks.callback(judge.register_forward_pre_hook(record(meter), with_kwargs=True).remove)
        yield


def _require_finite(activations: Tensor, where: str, sample: int) -> None:
    if not bool(torch.isfinite(activations).all()):
        raise CheckpointError(
            "An activation is NaN or infinite",
            where=f"{where}, calibration sample {sample}",
            why="the model does not compute with these weights",
            fix="check the checkpoint, or calibrate with another text if only this sample does it",
        )
