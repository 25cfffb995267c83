"""Two models scored on one text, one block of one of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.quantize.block_calls import catch_block_inputs, logits_of_model
from awq_tvm.quantize.families import family_of
from awq_tvm.quantize.memory import give_back_freed
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.torch_model import build_skeleton, empty, fast_matmul, fill, outside_blocks
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
    asked = [torch.from_numpy(piece[:-1].copy()).unsqueeze(0) for piece in pieces]
    of_model, of_reference = _Streamed(model), _Streamed(reference)
    total = of_model.blocks + of_reference.blocks
    score, reference_score = Score(), Score()
    with torch.no_grad(), fast_matmul():
        wanted = of_reference.run(asked, lambda done: progress(ProgressEvent("score", done, total)))
        found = of_model.run(
            asked, lambda done: progress(ProgressEvent("score", of_reference.blocks + done, total))
        )
        for place, piece in enumerate(pieces):
            expected = of_reference.logits(asked[place], wanted[place])
            reference_score.add(expected, piece[1:])
            score.add(of_model.logits(asked[place], found[place]), piece[1:], expected)
    return score, reference_score


class _Streamed:
    """A model whose blocks are filled one after the other; what stands before and after them stays filled."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = in_network_terms(checkpoint)
        self._family = family_of(checkpoint.config)
        self._model = build_skeleton(self._checkpoint.config)
        self._returns_tuple = False
        for name, module in outside_blocks(self._model, self._family).items():
            fill(module, name, self._checkpoint)
        if self._model.config.tie_word_embeddings:
            self._model.tie_weights()
        head = self._model.get_output_embeddings()
        name = next(name for name, module in self._model.named_modules() if module is head)
        fill(head, name, self._checkpoint)

    @property
    def blocks(self) -> int:
        return len(self._model.get_submodule(self._family.blocks))

    def run(self, asked: Sequence[Tensor], progress: Callable[[int], None]) -> list[Tensor]:
        """What leaves the last block: int64 [1, L] each -> float32 [1, L, H] each."""
        hidden: list[Tensor] = []
        # What blocks are called with besides hidden states depends on the number of tokens only.
        arguments = {}
        for tokens in asked:
            entering, arguments[tokens.shape[1]] = catch_block_inputs(self._model, self._family, tokens)
            hidden.append(entering)
        for index, block in enumerate(self._model.get_submodule(self._family.blocks)):
            fill(block, f"{self._family.blocks}.{index}", self._checkpoint)
            for place, tokens in enumerate(asked):
                output = block(hidden[place], **arguments[tokens.shape[1]][index])
                self._returns_tuple = isinstance(output, tuple)
                hidden[place] = output[0] if self._returns_tuple else output
            empty(block)
            progress(index + 1)
        return hidden

    def logits(self, tokens: Tensor, hidden: Tensor) -> npt.NDArray[np.float32]:
        """Logits for what left the last block, float32 [L, V]."""
        logits = logits_of_model(self._model, self._family, tokens, hidden, as_tuple=self._returns_tuple)
        found: npt.NDArray[np.float32] = logits[0].float().numpy()
        return found
