"""How much of a change of a block's output arrives at the end of the model, by its direction.

To second order the KL divergence by which a change d of the hidden states at a token moves the model's answers is
d' F d / 2, F the Fisher information: the mean of g g' over tokens that the model itself draws, with g the gradient
of their log-likelihood. Errors along directions that the rest of the model does not read cost nothing; a plain
square counts them all alike. One backward pass through the model gives F for every block; one block of it is in
memory at a time.

Hidden states of different tokens differ in size by orders of magnitude, and with them what a change of them does;
so g is multiplied by the size |h|, and F is for changes relative to that.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import CheckpointError
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.quantize.device import placed
from awq_tvm.quantize.hidden_states import HiddenStates
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.learned_rounding import fast_gradients
from awq_tvm.quantize.streamed_model import StreamedModel

# What F is made of by the identity: a few thousand tokens do not show every direction.
_EVEN = 0.1
# Behind the blocks every token is by itself. Logits, their softmax and its gradient of a whole sample would take
# gigabytes where the vocabulary is large.
_TOKENS_AT_ONCE = 128


def measure_importance(
    checkpoint: Checkpoint,
    token_ids: Tensor,
    loss_mask: Tensor,
    journal: Journal,
    *,
    seed: int,
    progress: ProgressCallback,
) -> Iterator[tuple[int, Tensor]]:
    """Measure the importance of directions for every block, from the last to the first.

    Args:
        checkpoint: the model in full precision.
        token_ids: int64 [S, L].
        loss_mask: tokens that count, bool [S, L].
        journal: holds the hidden states between blocks while this runs.
        seed: of the tokens that the model draws.
        progress: told after every block, twice: on the way to the end and back.

    Yields:
        The index of a block and, for changes of its output relative to the size of each token's, the matrix
        0.9 F + 0.1 I: float32 [H, H], symmetric, positive definite, F scaled to a mean of 1 on its diagonal.

    Raises:
        CheckpointError: a gradient is NaN or infinite.
        ResourceError: hidden states cannot be written.
    """
    model = StreamedModel(checkpoint)
    total = 2 * model.blocks
    samples = [ids.unsqueeze(0) for ids in token_ids]
    leaving = [_keep(journal, 0, [model.enter(ids) for ids in samples])]
    for index in range(model.blocks):
        with model.block(index) as run:
            leaving.append(_keep(journal, index + 1, (run(one) for one in _each(leaving[-1]))))
        progress(ProgressEvent("importance", index + 1, total))
    generator = torch.Generator().manual_seed(seed)
    gradients = [
        _gradient_of_drawn(model, ids, hidden, mask, generator)
        for ids, hidden, mask in zip(samples, _each(leaving[-1]), loss_mask, strict=True)
    ]
    for index in reversed(range(model.blocks)):
        yield index, _importance(gradients, leaving[index + 1], loss_mask, index)
        if index:
            with model.block(index) as run:
                for place, entering in enumerate(_each(leaving[index])):
                    entering.requires_grad_()
                    with torch.enable_grad(), fast_gradients():
                        run(entering).backward(gradients[place])
                    assert entering.grad is not None
                    gradients[place] = entering.grad
        progress(ProgressEvent("importance", total - index, total))


def _gradient_of_drawn(
    model: StreamedModel, ids: Tensor, hidden: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Gradient of the log-likelihood of tokens that the model draws, summed over those that count: [1, L, H]."""
    gradients = []
    for start in range(0, hidden.shape[1], _TOKENS_AT_ONCE):
        some = slice(start, start + _TOKENS_AT_ONCE)
        leaving = hidden[:, some].clone().requires_grad_()
        with torch.enable_grad(), fast_gradients():
            likelihood = model.logits(ids[:, some], leaving)[mask[some]].log_softmax(dim=-1)
            if likelihood.numel():
                drawn = torch.multinomial(likelihood.detach().exp().cpu(), 1, generator=generator)
                likelihood.gather(1, placed(drawn)).sum().backward()
        gradients.append(torch.zeros_like(leaving) if leaving.grad is None else leaving.grad)
    return torch.cat(gradients, dim=1)


def _importance(gradients: list[Tensor], leaving: HiddenStates, loss_mask: Tensor, index: int) -> Tensor:
    size = leaving.shape[2]
    fisher = torch.zeros(size, size)
    for gradient, hidden, mask in zip(gradients, _each(leaving), loss_mask, strict=True):
        relative = (gradient * hidden.norm(dim=-1, keepdim=True))[0, mask]
        fisher.addmm_(relative.T, relative)
    scale = float(fisher.diagonal().mean())
    if not 0 < scale < float("inf"):
        raise CheckpointError(
            "The gradients of a block's output are not finite, or all zero",
            where=f"block {index}",
            why="the model does not compute with these weights",
            fix="check the checkpoint, or use --learn-metric plain",
        )
    return fisher.mul_((1 - _EVEN) / scale).add_(torch.eye(size), alpha=_EVEN)


def _keep(journal: Journal, block: int, samples: Iterator[Tensor] | list[Tensor]) -> HiddenStates:
    """Write what enters a block to disk."""
    samples = list(samples)
    writer = journal.begin_stream("importance", block, (len(samples), *samples[0].shape[1:]))
    for hidden in samples:
        writer.append(hidden)
    return writer.finish()


def _each(stream: HiddenStates) -> Iterator[Tensor]:
    return (stream[sample : sample + 1] for sample in range(stream.shape[0]))
