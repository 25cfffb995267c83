"""Two models scored on one text, one block of one of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.memory import give_back_freed
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.quantize.device import placed, taken_back
from awq_tvm.quantize.streamed_model import StreamedModel
from awq_tvm.quantize.torch_model import fast_matmul
from awq_tvm.scoring import Score, windows


def score_by_block(
    model: Checkpoint,
    reference: Checkpoint,
    ids: npt.NDArray[np.int64],
    *,
    context: int,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Score, Score]:
    """Score a model and the one it was made from, by the protocol of `awq_tvm.scoring`, in float32.

    In memory are the embeddings and heads of both, a block, the hidden states of the whole text, and the logits of
    one window.

    Args:
        model: dense or quantized.
        reference: what to compare it with.
        ids: tokens of the text, int64 [T].
        context: tokens in a window.
        progress: told after every block.

    Returns:
        The scores of the model, compared with the reference, and of the reference.

    Raises:
        UsageError: fewer than 2 tokens or a context below 2, or models of different vocabularies.
        CheckpointError: a damaged model, or logits that are not finite.
    """
    give_back_freed()
    pieces = list(windows(ids, context))
    asked = [placed(piece[:-1].copy()).unsqueeze(0) for piece in pieces]
    of_model, of_reference = StreamedModel(model), StreamedModel(reference)
    total = of_model.blocks + of_reference.blocks
    score, reference_score = Score(), Score()
    with torch.no_grad(), fast_matmul():
        wanted = _run(of_reference, asked, lambda done: progress(ProgressEvent("score", done, total)))
        found = _run(
            of_model,
            asked,
            lambda done: progress(ProgressEvent("score", of_reference.blocks + done, total)),
        )
        for place, piece in enumerate(pieces):
            expected = taken_back(of_reference.logits(asked[place], wanted[place]))
            reference_score.add(expected, piece[1:])
            score.add(taken_back(of_model.logits(asked[place], found[place])), piece[1:], expected)
    return score, reference_score


def _run(model: StreamedModel, asked: Sequence[Tensor], progress: Callable[[int], None]) -> list[Tensor]:
    """What leaves the last block: int64 [1, L] each -> float32 [1, L, H] each."""
    hidden = [model.enter(tokens) for tokens in asked]
    for index in range(model.blocks):
        with model.block(index) as run:
            for place, entering in enumerate(hidden):
                hidden[place] = run(entering)
        progress(index + 1)
    return hidden
