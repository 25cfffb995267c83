"""The norm before the head, fitted to what the quantized blocks leave.

Errors of the blocks make the model's answers surer than they should be in some directions and too unsure in others.
What leaves the last block is scaled channel by channel before the head reads it: these scales are learned by how far
the answers are from the original model's, the KL divergence itself. The blocks stay as they are, so all it takes is
the head, on hidden states that are there anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import CheckpointError
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.quantize.hidden_states import HiddenStates
from awq_tvm.quantize.learned_rounding import fast_gradients
from awq_tvm.quantize.streamed_model import StreamedModel

# Logits, their softmax and its gradient: tens of megabytes where the vocabulary is large.
_TOKENS_AT_ONCE = 128
_PIECES_A_STEP = 6
# Of the samples, kept out of learning to see whether it helped.
_KEPT_OUT = 8


@dataclass(frozen=True)
class NormReport:
    """What became of the norm.

    Attributes:
        before: KL divergence from the original's answers in nats a token, on samples that were not learned from.
        after: the same with what was learned.
        kept: whether that is written, because it is nearer.
    """

    before: float
    after: float
    kept: bool


def learn_final_norm(
    checkpoint: Checkpoint,
    token_ids: Tensor,
    loss_mask: Tensor,
    original: HiddenStates,
    quantized: HiddenStates,
    *,
    steps: int,
    rate: float,
    seed: int,
    progress: ProgressCallback,
) -> tuple[dict[str, Tensor], NormReport]:
    """Learn the weights of what stands between the last block and the head.

    Args:
        checkpoint: the model in full precision.
        token_ids: calibration samples, int64 [S, L]; the last eighth, at least one, is not learned from.
        loss_mask: tokens that count, bool [S, L].
        original: what leaves the last block of the original, float32 [S, L, H].
        quantized: what leaves the last quantized block, float32 [S, L, H].
        steps: of the optimizer, 768 tokens each.
        rate: how far a weight moves in the first step, relative to their mean size; it falls to zero in a line.
        seed: of which tokens are taken.
        progress: told after every step.

    Returns:
        The weights by full name, float16 [H], none where the divergence does not fall; and how it went.

    Raises:
        CheckpointError: a logit is NaN or infinite.
    """
    ending = _Ending(StreamedModel(checkpoint), token_ids, loss_mask, original, quantized)
    samples, length = token_ids.shape
    kept_out = max(1, samples // _KEPT_OUT)
    learned_from = max(1, samples - kept_out)
    before = ending.divergence(range(samples - kept_out, samples))
    parameters = list(ending.weights.values())
    optimizer = torch.optim.Adam(
        [{"params": [one], "lr": rate * _size(one), "first": rate * _size(one)} for one in parameters]
    )
    generator = torch.Generator().manual_seed(seed)
    pieces = -(-length // _TOKENS_AT_ONCE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["first"] * (1 - step / steps)
        optimizer.zero_grad()
        drawn = torch.randint(learned_from * pieces, (_PIECES_A_STEP,), generator=generator, device="cpu")
        for piece in drawn.tolist():
            with torch.enable_grad():
                divergence, tokens = ending.of_piece(piece // pieces, piece % pieces)
                if tokens:
                    (divergence / (tokens * _PIECES_A_STEP)).backward()
        optimizer.step()
        progress(ProgressEvent("norm", step + 1, steps))
    found = {name: one.detach().half() for name, one in ending.weights.items()}
    for name, one in ending.weights.items():
        one.data = found[name].float()
    after = ending.divergence(range(samples - kept_out, samples))
    kept = after < before
    return found if kept else {}, NormReport(before, after, kept)


class _Ending:
    """What stands behind the last block, asked for the original's answers and for the quantized model's.

    Attributes:
        weights: of the norms there, by full name; what changes is read by the quantized model's answers only.
    """

    def __init__(
        self,
        model: StreamedModel,
        token_ids: Tensor,
        loss_mask: Tensor,
        original: HiddenStates,
        quantized: HiddenStates,
    ) -> None:
        self._model, self._token_ids, self._loss_mask = model, token_ids, loss_mask
        self._original, self._quantized = original, quantized
        self.weights = model.norms_behind_blocks(token_ids[:1, :1])

    def divergence(self, samples: range) -> float:
        """Mean KL divergence over the tokens of some samples that count."""
        total, count = 0.0, 0
        pieces = -(-self._token_ids.shape[1] // _TOKENS_AT_ONCE)
        with torch.no_grad():
            for sample in samples:
                for piece in range(pieces):
                    divergence, tokens = self.of_piece(sample, piece)
                    total, count = total + float(divergence), count + tokens
        return total / max(count, 1)

    def of_piece(self, sample: int, piece: int) -> tuple[Tensor, int]:
        """Sum of the KL divergence over the tokens of a piece of a sample that count, and how many these are."""
        some = slice(piece * _TOKENS_AT_ONCE, (piece + 1) * _TOKENS_AT_ONCE)
        with torch.no_grad():
            expected = self._answers(self._original, {}, sample, some)
        found = self._answers(self._quantized, self.weights, sample, some)
        if not bool(torch.isfinite(found).all()):
            raise CheckpointError(
                "A logit of the quantized model is NaN or infinite",
                where=f"calibration sample {sample}",
                why="the model does not compute with these weights",
                fix="check the checkpoint, or use --learn-norm-steps 0",
            )
        return torch.sum(expected.exp() * (expected - found)), found.shape[0]

    def _answers(
        self, stream: HiddenStates, weights: Mapping[str, Tensor], sample: int, some: slice
    ) -> Tensor:
        one = slice(sample, sample + 1)
        with fast_gradients():
            logits = self._model.logits(self._token_ids[one, some], stream[one][:, some], weights)
        return logits[self._loss_mask[sample, some]].float().log_softmax(dim=-1)


def _size(weights: Tensor) -> float:
    """What a step of the optimizer is measured by; norms that add one to their weights may hold none but zeros."""
    return max(float(weights.detach().abs().mean()), 0.1)
