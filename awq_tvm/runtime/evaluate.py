"""Perplexity of a bundle on a text, and how far it is from a reference, by the protocol of `scoring`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.runtime.engine import Engine
from awq_tvm.scoring import Score, windows

MAX_TEXT_BYTES = 64 << 20

# Token ids [n] of a window but its last -> logits [n, V] of another model.
ReferenceLogits = Callable[[np.ndarray], np.ndarray]


def evaluate_bundle(
    engine: Engine,
    text_path: Path,
    *,
    context: int = 512,
    tokens: int | None = None,
    reference: ReferenceLogits | None = None,
    progress: ProgressCallback = ignore_progress,
) -> dict[str, float | int | None]:
    """Score a text with a loaded bundle.

    Args:
        engine: the bundle.
        text_path: UTF-8 text of at most 64 MiB.
        context: tokens in a window; see `scoring.windows`.
        tokens: how many of the text's first tokens; None for all.
        reference: logits of the model to compare with; None for none.
        progress: told after every window.

    Returns:
        {"perplexity", "kl_divergence", "top1_agreement", "tokens"}; the middle two None without reference.

    Raises:
        UsageError: no text, one that is too short or too long, or a window that does not fit the context.
        CheckpointError: logits that are not finite.
    """
    if context > engine.executor.context_length:
        raise UsageError(
            "The window is longer than the bundle's context.",
            where="--context",
            why=f"found {context}, the context holds {engine.executor.context_length}",
            fix="give a smaller --context, or compile with a larger --context-length",
        )
    if tokens is not None and tokens < 2:
        raise UsageError(
            "So few tokens cannot be scored.",
            where="--tokens",
            why=f"found {tokens}, at least 2 are needed",
            fix="leave --tokens out to score the whole text",
        )
    ids = engine.tokenizer.encode(read_text(text_path))[:tokens]
    pieces = list(windows(ids, context))
    score = Score()
    for index, piece in enumerate(pieces):
        sequence = engine.executor.new_sequence()
        try:
            logits = engine.executor.forward([sequence], [piece[:-1].tolist()], logits="all")
        finally:
            engine.executor.remove_sequence(sequence)
        score.add(logits, piece[1:], None if reference is None else reference(piece[:-1]))
        progress(ProgressEvent("score", index + 1, len(pieces), f"perplexity {score.perplexity:.3f}"))
    return score.as_dict()


def read_text(path: Path) -> str:
    """A UTF-8 text of at most 64 MiB.

    Raises:
        UsageError: it cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TEXT_BYTES + 1)
        why = f"it has more than {MAX_TEXT_BYTES} bytes" if len(raw) > MAX_TEXT_BYTES else ""
        text = raw.decode() if not why else ""
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise UsageError(
            "The text cannot be read.", where=str(path), why=why, fix="give a plain text file in UTF-8"
        )
    return text
