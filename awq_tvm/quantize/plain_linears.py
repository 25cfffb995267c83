"""Every matrix becomes one linear, named as in the files of checkpoints, that can hold what is in them as it is.

GPT-2 multiplies by [K, N] matrices. Mixtures of experts have the matrices of all experts in one parameter, while
their files have them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_FUSED = {"gate_up_proj", "down_proj"}
# Weights converted at once: few enough to be used while they are in a cache, in rows by which products are fast.
_WEIGHTS_AT_ONCE, _ROWS = 1 << 22, 64


class StoredLinear(nn.Linear):
    """A linear that computes in float32 but may hold its weight as float16 or bfloat16, as files store it.

    Half the memory; the weight is converted when it is used, which loses nothing, and some rows at a time: a whole
    copy would be twice as large as what is held.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        if self.weight.dtype == torch.float32:
            return super().forward(inputs)
        rows = max(_ROWS, _WEIGHTS_AT_ONCE // self.in_features // _ROWS * _ROWS)
        weights = self.weight.split(rows)
        biases = [None] * len(weights) if self.bias is None else self.bias.split(rows)
        parts = [
            nn.functional.linear(inputs, weight.float(), bias)
            for weight, bias in zip(weights, biases, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class Expert(nn.Module):
    """A gated MLP: y = down(act(gate(x)) * up(x))."""

    def __init__(self, gate_up: Tensor, down: Tensor, act_fn: Callable[[Tensor], Tensor]) -> None:
        """Take views of the matrices.

        Args:
            gate_up: [2 * I, H], the gate's rows first.
            down: [H, I].
            act_fn: of the gate.
        """
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj, self.down_proj = _linear(gate), _linear(up), _linear(down)
        self.act_fn = act_fn

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        answer: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return answer


class Experts(nn.ModuleList):
    """Experts of which each answers for the tokens that were routed to it.

    Attributes:
        asked_all: numbers of experts that are handed all tokens, whatever the router says, and nobody else any:
            to see what goes through them. None for the network's own way.
    """

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        """Take the experts, in their order."""
        super().__init__(experts)
        self.asked_all: tuple[int, ...] | None = None

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Add up what the experts say.

        Args:
            hidden: [T, H].
            chosen: int64 [T, k], the experts of each token, none twice.
            weights: [T, k], how much each counts.

        Returns:
            [T, H].
        """
        total = torch.zeros_like(hidden)
        if self.asked_all is not None:
            for number in self.asked_all:
                total += self[number](hidden)
            return total
        for number, expert in enumerate(self):
            tokens, places = torch.where(chosen == number)
            if tokens.numel():
                answers = expert(hidden[tokens]) * weights[tokens, places, None]
                total.index_add_(0, tokens, answers.to(total.dtype))
        return total


def replace_by_linears(model: nn.Module) -> None:
    """Put linears, and experts made of linears, where a network has the same matrices in another form.

    What multiplies in a way of its own, as Falcon's linears do, stays.

    Args:
        model: the network; its weights may be on "meta".
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(path, _linear(module.weight.T, module.bias))
        elif type(module) is nn.Linear:
            model.set_submodule(path, _linear(module.weight, module.bias))
        elif {name for name, _ in module.named_parameters(recurse=False)} == _FUSED:
            matrices = zip(module.gate_up_proj, module.down_proj, strict=True)
            model.set_submodule(path, Experts(Expert(*pair, module.act_fn) for pair in matrices))


def experts_in(block: nn.Module) -> dict[str, Experts]:
    """All sets of experts in a block, by path."""
    return {path: module for path, module in block.named_modules() if isinstance(module, Experts)}


def _linear(weight: Tensor, bias: Tensor | None = None) -> StoredLinear:
    """A linear with a weight [N, K] and perhaps a bias [N]; parameters stay the very ones, for they may be tied."""
    rows, inputs = weight.shape
    linear = StoredLinear(inputs, rows, bias=bias is not None, device="meta")
    linear.weight = _parameter(weight)
    if bias is not None:
        linear.bias = _parameter(bias)
    return linear


def _parameter(tensor: Tensor) -> nn.Parameter:
    is_one = isinstance(tensor, nn.Parameter)
    return tensor if is_one else nn.Parameter(tensor.detach(), requires_grad=False)
