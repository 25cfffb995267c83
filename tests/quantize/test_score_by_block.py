"""Block by block the figures are those of whole models, for every form of a block."""

from __future__ import annotations

import numpy as np
import pytest

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressEvent
from awq_tvm.quantize.evaluate import evaluate_torch, token_ids_of
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.score_by_block import score_by_block
from tests.quantize.tiny_models import ALL_FAMILIES, save_tiny_model, write_text


def _models(folder, family, **changes):
    save_tiny_model(folder / "model", family, **changes)
    quantize_checkpoint(str(folder / "model"), folder / "q", method="rtn", group_size=32)
    return str(folder / "q"), str(folder / "model")


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in ALL_FAMILIES), ("llama", {"tie_word_embeddings": True})],
    ids=str,
)
def test_scores_are_those_of_whole_models(tmp_path, family, changes):
    """Also of a last window that is shorter, and with the embedding that the quantized model has in float16."""
    model, original = _models(tmp_path, family, **changes)
    text = write_text(tmp_path / "text.txt", 150)
    ids = token_ids_of(open_checkpoint(model), text, None)
    events: list[ProgressEvent] = []
    found, reference = score_by_block(
        open_checkpoint(model), open_checkpoint(original), ids, context=64, progress=events.append
    )
    expected = evaluate_torch(model, text, context=64, reference=original)
    assert found.as_dict() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    alone = evaluate_torch(original, text, context=64)
    assert reference.perplexity == pytest.approx(alone["perplexity"], rel=1e-4)
    assert reference.tokens == found.tokens == alone["tokens"] == 150 - 3
    assert [(event.done, event.total) for event in events] == [(done, 4) for done in (1, 2, 3, 4)]


def test_a_model_against_itself(tmp_path):
    save_tiny_model(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    found, reference = score_by_block(checkpoint, checkpoint, np.arange(40), context=16)
    assert found.kl_divergence == 0
    assert found.top1_agreement == 1
    assert found.perplexity == reference.perplexity


def test_models_of_other_vocabularies(tmp_path):
    save_tiny_model(tmp_path / "a")
    save_tiny_model(tmp_path / "b", vocab_size=160)
    first, second = (open_checkpoint(str(tmp_path / name)) for name in "ab")
    with pytest.raises(UsageError, match="same vocabulary"):
        score_by_block(first, second, np.arange(40), context=16)
