"""Learned rounding: up or down is chosen for each weight by the error of the whole block's output.

Each weight gets an offset v in [-0.5, 0.5] that is added before it is rounded: q = round(W / s + v) + z, and each
group a factor 1 + t of its scale: s = s0 * (1 + t). Zero points stay. Offsets and factors follow the gradient of the
block's error with the rounding taken for the identity (SignRound, arXiv:2309.05516, with Adam in place of signs;
LSQ, arXiv:1902.08153, for scales). What enters the block comes out of the quantized blocks before it, and what should
leave it is what the original model computes: so a block also makes up for errors made before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from awq_tvm.quantize.activations import Samples, that_count
from awq_tvm.quantize.awq import BlockResult
from awq_tvm.quantize.group_quantize import LARGEST_HALF, SMALLEST_HALF, Quantized

_BETAS = (0.9, 0.95)
# Gradients of a mean over many outputs are small; torch's own 1e-8 would not be negligible beside them.
_EPSILON = 1e-15
_SMALLEST_SQUARE = 1e-12


@dataclass
class _Learned:
    """One linear while its rounding is learned, [N, G, g] or, one for each group, [N, G, 1].

    Attributes:
        weight: W, on the scale on which it is rounded.
        scales: s0, float16 values.
        zeros: z.
        levels: the largest q.
        shape: (N, K).
        offset: v, what the optimizer changes.
        stretch: t, what the optimizer changes.
    """

    weight: Tensor
    scales: Tensor
    zeros: Tensor
    levels: int
    shape: torch.Size
    offset: torch.nn.Parameter
    stretch: torch.nn.Parameter

    def stretched(self) -> Tensor:
        """The scales as they would be written, rounded to float16: float32 [N, G, 1]."""
        return (self.scales * (1 + self.stretch)).clamp_(SMALLEST_HALF, LARGEST_HALF).half().float()

    def unclamped(self, scales: Tensor) -> Tensor:
        """The q that weights and offsets ask for, also outside 0..levels."""
        return (self.weight / scales).add_(self.zeros).add_(self.offset).round_()

    def written(self) -> Tensor:
        """What would be written, float32 [N, K], as a leaf that takes a gradient."""
        scales = self.stretched()
        q = self.unclamped(scales).clamp_(0, self.levels)
        return q.sub_(self.zeros).mul_(scales).view(self.shape).requires_grad_()

    def take_gradient(self, gradient: Tensor | None) -> None:
        """Turn the gradient of what would be written, [N, K], into that of offsets and factors.

        What a scale changes of a weight is how far rounding moved it, and all of what a clamped weight became;
        clamped weights take no offset. An expert that no token of a step was routed to has no gradient at all, and
        stays as it is in that step.
        """
        if gradient is None:
            self.offset.grad = self.stretch.grad = None
            return
        gradient, scales = gradient.view_as(self.weight), self.stretched()
        q = self.unclamped(scales)
        inside = (q >= 0) & (q <= self.levels)
        moved = q.clamp_(0, self.levels).sub_(self.zeros)
        moved.sub_((self.weight / scales).mul_(inside))
        self.stretch.grad = moved.mul_(gradient).sum(dim=-1, keepdim=True).mul_(self.scales)
        self.offset.grad = gradient * scales * inside

    def finish(self) -> Quantized:
        """The quantized weight with offsets and factors as they are."""
        rows, groups, _ = self.scales.shape
        scales = self.stretched()
        q = self.unclamped(scales).clamp_(0, self.levels).to(torch.uint8)
        zeros = self.zeros.to(torch.uint8)
        return Quantized(q.view(self.shape), scales.half().view(rows, groups), zeros.view(rows, groups))


def learn_rounding(
    block: torch.nn.Module,
    arguments: Mapping[str, Any],
    start: BlockResult,
    levels: Mapping[str, int],
    inputs: Samples,
    targets: Samples,
    loss_mask: Tensor,
    *,
    steps: int,
    rate: float,
    scale_rate: float,
    batch_tokens: int,
) -> BlockResult:
    """Learn which weights of a block to round up and which down, and how far apart the levels of a group are.

    Args:
        block: filled, in full precision; it is not changed.
        arguments: what it is called with besides hidden states, for a batch of one.
        start: the block quantized by a search, whose zero points are kept.
        levels: the largest q, by path of the linear below the block.
        inputs: what enters the block once the blocks before it are quantized, float32 [S, L, H].
        targets: what leaves the block in full precision, float32 [S, L, H].
        loss_mask: tokens that count in the error, bool [S, L].
        steps: of the optimizer.
        rate: how far an offset moves in the first step; it falls to zero in a line.
        scale_rate: the same for the factor of a scale; 0 keeps the scales.
        batch_tokens: tokens of a step; samples are taken in their order, and again from the first.

    Returns:
        A result like `start` but for q and scales; its losses are not measured.
    """
    learned = {
        name: _begin(start.scaled(name, block.get_submodule(name).weight), quantized, levels[name])
        for name, quantized in start.quantized.items()
    }
    dense = {name: weight.float() for name, weight in start.dense.items()}
    samples, length, _ = inputs.shape
    batch = min(samples, -(-batch_tokens // length))
    rates = {"offset": rate, "stretch": scale_rate}
    parameters = [
        {"params": [getattr(one, field) for one in learned.values()], "lr": first}
        for field, first in rates.items()
    ]
    optimizer = torch.optim.Adam(parameters, betas=_BETAS, eps=_EPSILON)
    for step in range(steps):
        for group, first in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = first * (1 - step / steps)
        weights = {name: one.written() for name, one in learned.items()}
        replaced = dense | {f"{name}.weight": weight for name, weight in weights.items()}
        for place in range(batch):
            sample = (step * batch + place) % samples
            one, mask = slice(sample, sample + 1), loss_mask[sample]
            if not bool(mask.any()):
                continue
            with torch.enable_grad(), fast_gradients():
                output = torch.func.functional_call(block, replaced, (inputs[one],), dict(arguments))
                output = output[0] if isinstance(output, tuple) else output
                error = relative_error(that_count(output.float(), mask), that_count(targets[one], mask))
                error.backward()
        for name, one_linear in learned.items():
            one_linear.take_gradient(weights[name].grad)
        optimizer.step()
        for one_linear in learned.values():
            one_linear.offset.data.clamp_(-0.5, 0.5)
            one_linear.stretch.data.clamp_(-0.5, 0.5)
    quantized = {name: one.finish() for name, one in learned.items()}
    return replace(start, quantized=quantized, loss=None)


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of |output - target|^2 / |target|^2.

    Relative, because a few tokens, the first above all, are larger by orders of magnitude in trained models; the
    norm behind the last block makes all tokens equally large again.

    Args:
        output: float32 [..., H].
        target: float32 [..., H].

    Returns:
        float32 [].
    """
    square = target.square().sum(dim=-1).clamp(min=_SMALLEST_SQUARE)
    change = output - target
    return (torch.linalg.vecdot(change, change) / square).mean()


def fast_gradients() -> torch.autocast:
    """Let matrix products compute in bfloat16 where the device does that itself; gradients bear it."""
    if torch.get_default_device().type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_bf16_supported(False))
    hardware = torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bfloat16_products()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=hardware)


def _has_bfloat16_products() -> bool:
    capabilities: dict[str, Any] = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _begin(weight: Tensor, quantized: Quantized, levels: int) -> _Learned:
    rows, groups = quantized.scales.shape
    scales = quantized.scales.float().view(rows, groups, 1)
    zeros = quantized.zeros.float().view(rows, groups, 1)
    grouped = weight.view(rows, groups, -1)
    offset = torch.nn.Parameter(torch.zeros_like(grouped))
    return _Learned(
        grouped, scales, zeros, levels, weight.shape, offset, torch.nn.Parameter(torch.zeros_like(scales))
    )
