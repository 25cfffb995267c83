"""The text that a report scores: one that the model was not calibrated on."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressCallback
from awq_tvm.quantize.score_by_block import score_by_block
from awq_tvm.quantize.text_sources import python_help_topics, read_text
from awq_tvm.quantize.text_tokens import check_vocabulary, encode, load_tokenizer

REPORT_TOKENS = 8192
"""Tokens of the text, from its beginning, that a report scores."""
_TOPICS = "topics"


@dataclass(frozen=True, slots=True)
class Quality:
    """How far a quantized model is from the one it was made from, on a text.

    Attributes:
        text: where the text is from, one line.
        is_calibration_text: the model was calibrated on this very text, so that the figures flatter it.
        tokens: that were predicted.
        context: tokens in a window.
        perplexity_before: of the original model.
        perplexity_after: of the quantized one.
        kl_divergence: mean KL(original || quantized), nats a token.
        top1_agreement: part of the tokens, 0 to 1, for which both rank the same token first.
    """

    text: str
    is_calibration_text: bool
    tokens: int
    context: int
    perplexity_before: float
    perplexity_after: float
    kl_divergence: float
    top1_agreement: float


@dataclass(frozen=True)
class ReportText:
    """A text to score.

    Attributes:
        source: where it is from, one line.
        ids: its first tokens, int64 [T].
        context: tokens in a window.
        is_calibration_text: the model is calibrated on it.
    """

    source: str
    ids: npt.NDArray[np.int64]
    context: int
    is_calibration_text: bool

    def score(self, model: Checkpoint, reference: Checkpoint, progress: ProgressCallback) -> Quality:
        """Score a quantized model and the one it was made from; see `score_by_block`."""
        after, before = score_by_block(model, reference, self.ids, context=self.context, progress=progress)
        return Quality(
            text=self.source,
            is_calibration_text=self.is_calibration_text,
            tokens=after.tokens,
            context=self.context,
            perplexity_before=before.perplexity,
            perplexity_after=after.perplexity,
            kl_divergence=after.kl_divergence or 0.0,
            top1_agreement=after.top1_agreement or 0.0,
        )


def choose_report_text(
    checkpoint: Checkpoint, path: Path | None, calibration: str | None, context: int
) -> ReportText | None:
    """The text that was asked for, else Python's help topics unless those are what is calibrated on.

    Args:
        checkpoint: its tokenizer is used.
        path: UTF-8 text; None for the help topics.
        calibration: "self", "topics", "hf:NAME" or a file; None where nothing is calibrated.
        context: tokens in a window.

    Returns:
        The text; None where none was asked for and the help topics are calibrated on.

    Raises:
        UsageError: a text that is not there, not UTF-8, or has fewer than 2 tokens.
        CheckpointError: the model has no tokenizer, or one that makes tokens it does not have.
    """
    if path is None and calibration == _TOPICS:
        return None
    if path is None:
        source, text = "the help topics that come with Python", python_help_topics()
    else:
        source, text = path.name, read_text(path)
    ids = encode(load_tokenizer(checkpoint), text)[:REPORT_TOKENS]
    if ids.size < 2:
        raise UsageError(
            "The text of the report is too short to score",
            where=source,
            why=f"it has {ids.size} token(s), and at least 2 are needed",
            fix="--report-text FILE with a longer text",
        )
    check_vocabulary(ids, source, checkpoint.config["vocab_size"])
    return ReportText(source, ids, context, path is not None and _is_same(path, calibration))


def _is_same(path: Path, calibration: str | None) -> bool:
    """Whether a file is calibrated on, under this or another name."""
    other = Path(calibration) if calibration else None
    return other is not None and other.is_file() and filecmp.cmp(path, other, shallow=False)
