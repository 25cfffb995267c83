from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from awq_tvm.errors import CheckpointError, UsageError
from awq_tvm.progress import ProgressEvent
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.evaluate import MAX_TEXT_BYTES, evaluate_bundle, read_text
from tests.prompt.tokenizers_for_tests import byte_level

from .bigram import Bigram

TOKENIZER = byte_level()
TEXT = "Once upon a time there was a little girl named Lily. The user asks and the assistant answers."


def _engine(table: np.ndarray, context_length: int = 64) -> Engine:
    executor = Bigram(table, context_length)
    return Engine(executor, TOKENIZER, eos_token_ids=[], vocab_size=TOKENIZER.vocab_size)


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(TOKENIZER.vocab_size,) * 2).astype(np.float32)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_perplexity_by_hand(table: np.ndarray, text: Path) -> None:
    ids = TOKENIZER.encode(TEXT)
    logs = table.astype(np.float64) - np.log(np.exp(table.astype(np.float64)).sum(1, keepdims=True))
    pairs = [(ids[i], ids[i + 1]) for i in range(len(ids) - 1) if (i + 1) % 8]
    expected = np.exp(-np.mean([logs[a, b] for a, b in pairs]))
    events: list[ProgressEvent] = []
    engine = _engine(table)
    result = evaluate_bundle(engine, text, context=8, progress=events.append)
    assert result["tokens"] == len(pairs)
    assert result["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert result["kl_divergence"] is None
    assert events[-1].done == events[-1].total == -(-len(ids) // 8)
    assert engine.executor.sequences == {}


def test_first_tokens_only(table: np.ndarray, text: Path) -> None:
    assert evaluate_bundle(_engine(table), text, context=8, tokens=9)["tokens"] == 7
    assert evaluate_bundle(_engine(table), text, context=8, tokens=10)["tokens"] == 8


def test_reference(table: np.ndarray, text: Path) -> None:
    same = evaluate_bundle(_engine(table), text, context=8, reference=lambda ids: table[ids])
    assert same["kl_divergence"] == pytest.approx(0, abs=1e-6)
    assert same["top1_agreement"] == 1.0
    other = evaluate_bundle(_engine(table), text, context=8, reference=lambda ids: -table[ids])
    assert other["kl_divergence"] is not None
    assert other["kl_divergence"] > 0.5
    assert other["top1_agreement"] == 0.0


def test_window_longer_than_the_context(table: np.ndarray, text: Path) -> None:
    evaluate_bundle(_engine(table, 16), text, context=16)
    with pytest.raises(UsageError, match="found 17, the context holds 16"):
        evaluate_bundle(_engine(table, 16), text, context=17)


def test_too_few_tokens(table: np.ndarray, text: Path) -> None:
    with pytest.raises(UsageError, match="found 1, at least 2"):
        evaluate_bundle(_engine(table), text, tokens=1, context=8)
    text.write_text("")
    with pytest.raises(UsageError):
        evaluate_bundle(_engine(table), text, context=8)


def test_logits_that_are_no_numbers(table: np.ndarray, text: Path) -> None:
    engine = _engine(np.full_like(table, np.nan))
    with pytest.raises(CheckpointError):
        evaluate_bundle(engine, text, context=8)
    assert engine.executor.sequences == {}


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text("é")
    assert read_text(good) == "é"
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="byte 3 is not UTF-8"):
        read_text(tmp_path / "latin")
    with pytest.raises(UsageError, match="No such file"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="directory"):
        read_text(tmp_path)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(UsageError, match=f"more than {MAX_TEXT_BYTES} bytes"):
        read_text(tmp_path / "big")
