"""How much a choice of weights hurts: the mean squared change of a module's output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from awq_tvm.quantize.activations import InputStatistics, that_count


class Judge(Protocol):
    """Measures the loss of replacing some linears' weights, all else in full precision."""

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Mean square of the output's change.

        Args:
            weights: float32 [N, K] by path below the block, for the input as it is without scales.
        """
        ...


class MomentJudge:
    """The loss of one linear without its inputs: |X D'|^2 / T = tr(D M D') with D = W' - W, M = X'X / T."""

    def __init__(self, linear: str, weight: Tensor, moment: Tensor) -> None:
        """Take what the loss is made of.

        Args:
            linear: path below the block.
            weight: [N, K], of any float type.
            moment: float32 [K, K].
        """
        self._linear, self._weight, self._moment = linear, weight, moment

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """See Judge."""
        change = weights[self._linear] - self._weight
        per_output = torch.linalg.vecdot(change @ self._moment, change)
        return comparable(max(float(per_output.double().mean()), 0.0))


class ModuleJudge:
    """The loss of a module that holds the linears, by running it on the inputs kept for the search."""

    def __init__(self, block: torch.nn.Module, statistics: InputStatistics) -> None:
        path = statistics.group.judged_by
        self._module = block.get_submodule(path)
        self._inside = len(path) + 1 if path else 0
        self._calls = statistics.calls
        self._expected = [self._run({}, index) for index in range(len(self._calls))]

    def _run(self, weights: Mapping[str, Tensor], index: int) -> Tensor:
        replaced = {
            f"{name[self._inside :]}.weight".removeprefix("."): weight for name, weight in weights.items()
        }
        call = self._calls[index]
        output = torch.func.functional_call(self._module, replaced, call.args, call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """See Judge."""
        total, count = 0.0, 0
        for index, expected in enumerate(self._expected):
            change = self._run(weights, index).sub_(expected)
            mask = self._calls[index].loss_mask
            if mask is not None:
                change = that_count(change, mask)
            total += float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
            count += change.numel()
        return comparable(total / count)


def comparable(loss: float) -> float:
    """A loss that can be compared: one that cannot be computed, because sums overflowed, is as bad as can be."""
    return math.inf if math.isnan(loss) else loss


def judge_of(block: torch.nn.Module, statistics: InputStatistics) -> Judge:
    """The judge of a group of linears.

    Args:
        block: the block in full precision; it must not change while the judge is in use.
        statistics: of the group's input.

    Returns:
        A MomentJudge where the group is one linear that is judged by its own output, else a ModuleJudge.
    """
    if statistics.moment is not None:
        linear = statistics.group.linears[0]
        return MomentJudge(linear, block.get_submodule(linear).weight, statistics.moment)
    return ModuleJudge(block, statistics)
