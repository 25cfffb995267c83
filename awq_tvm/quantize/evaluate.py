"""Perplexity, KL divergence and top-1 agreement in PyTorch, by the protocol of `awq_tvm.scoring`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from awq_tvm.checkpoint import Checkpoint, open_checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.quantize.text_sources import read_text
from awq_tvm.quantize.text_tokens import encode, load_tokenizer
from awq_tvm.quantize.torch_model import build_model, fast_matmul, quiet_transformers
from awq_tvm.scoring import Score, windows


def evaluate_torch(
    model: str | Checkpoint,
    text_path: Path,
    *,
    context: int = 512,
    tokens: int | None = None,
    reference: str | Checkpoint | None = None,
    progress: ProgressCallback = ignore_progress,
) -> dict[str, float | int | None]:
    """Score a text with a model, dense or with its quantized weights dequantized, in float32.

    Args:
        model: what `open_checkpoint` takes, or what it gives.
        text_path: UTF-8 text.
        context: tokens in a window; see `awq_tvm.scoring.windows`.
        tokens: how many of the text's first tokens; None for all.
        reference: the model to compare with, read with the first one's tokens; None for none.
        progress: told after every window.

    Returns:
        {"perplexity", "kl_divergence", "top1_agreement", "tokens"}; the second and third None without
        reference.

    Raises:
        UsageError: a text that is not there or too short, or models that cannot be compared.
        CheckpointError: a damaged model, or logits that are not finite.
    """
    quiet_transformers()
    opened = open_checkpoint(model) if isinstance(model, str) else model
    ids = token_ids_of(opened, Path(text_path), tokens)
    other = open_checkpoint(reference) if isinstance(reference, str) else reference
    compared = build_model(other) if other is not None else None
    return score_tokens(build_model(opened), ids, context=context, reference=compared, progress=progress)


def token_ids_of(checkpoint: Checkpoint, text_path: Path, tokens: int | None) -> npt.NDArray[np.int64]:
    """The first tokens of a text, int64 [T]; a token at the start only where the tokenizer itself puts one.

    Raises:
        UsageError: the text is not there or not UTF-8, or tokens is below 2.
        CheckpointError: the model has no tokenizer.
    """
    if tokens is not None and tokens < 2:
        raise UsageError(
            "So few tokens cannot be scored", where="--tokens", why=f"found {tokens}, at least 2 are needed"
        )
    return encode(load_tokenizer(checkpoint), read_text(text_path))[:tokens]


def score_tokens(
    model: PreTrainedModel,
    ids: npt.NDArray[np.int64],
    *,
    context: int,
    reference: PreTrainedModel | None = None,
    progress: ProgressCallback = ignore_progress,
) -> dict[str, float | int | None]:
    """Score token ids with a filled model; arguments and result as in `evaluate_torch`."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.size and int(ids.max()) >= vocabulary:
        raise UsageError(
            "A token of the text is outside the model's vocabulary",
            why=f"its id is {int(ids.max())}, the model has {vocabulary} of them",
            fix="use the tokenizer that belongs to the model",
        )
    score, pieces = Score(), list(windows(ids, context))
    with torch.no_grad(), fast_matmul():
        for index, piece in enumerate(pieces):
            inputs = torch.from_numpy(piece[:-1]).unsqueeze(0)
            logits = model(input_ids=inputs, use_cache=False).logits[0].numpy()
            wanted = None
            if reference is not None:
                wanted = reference(input_ids=inputs, use_cache=False).logits[0].numpy()
            score.add(logits, piece[1:], wanted)
            progress(ProgressEvent("score", index + 1, len(pieces), f"perplexity {score.perplexity:.3f}"))
    return score.as_dict()
