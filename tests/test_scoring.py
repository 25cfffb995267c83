"""The protocol, against sums written out one token at a time in float64."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from awq_tvm.errors import CheckpointError, UsageError
from awq_tvm.scoring import Score, log_softmax, windows


def _logits(rows: int, vocabulary: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (rows, vocabulary)).astype(np.float32)


def test_windows_cover_the_text_once():
    pieces = list(windows(range(10), 4))
    assert [piece.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(piece.dtype == np.int64 for piece in pieces)


def test_a_single_token_at_the_end_predicts_nothing():
    assert [len(piece) for piece in windows(range(9), 4)] == [4, 4]


@pytest.mark.parametrize(("ids", "context"), [([1, 2, 3], 1), ([1, 2, 3], 0), ([1], 4), ([], 4)])
def test_too_short(ids, context):
    with pytest.raises(UsageError, match="too short"):
        windows(ids, context)


def test_figures_are_those_of_the_definition():
    logits, reference = _logits(150, 37, 0), _logits(150, 37, 1)
    targets = np.random.default_rng(2).integers(0, 37, 150)
    score = Score()
    score.add(logits[:100], targets[:100], reference[:100])
    score.add(logits[100:], targets[100:], reference[100:])
    nll = kl = agreed = 0.0
    for row in range(150):
        q = np.exp(logits[row].astype(np.float64))
        p = np.exp(reference[row].astype(np.float64))
        q, p = q / q.sum(), p / p.sum()
        nll -= np.log(q[targets[row]])
        kl += (p * np.log(p / q)).sum()
        agreed += q.argmax() == p.argmax()
    figures = score.as_dict()
    assert figures["perplexity"] == pytest.approx(np.exp(nll / 150), rel=1e-5)
    assert figures["kl_divergence"] == pytest.approx(kl / 150, rel=1e-5)
    assert figures["top1_agreement"] == pytest.approx(agreed / 150)
    assert figures["tokens"] == 150


def test_a_model_agrees_with_itself():
    logits = _logits(9, 11, 3)
    score = Score()
    score.add(logits, np.zeros(9, int), logits + 5.0)
    assert score.kl_divergence == pytest.approx(0.0, abs=1e-6)
    assert score.top1_agreement == 1.0


def test_without_a_reference_there_is_nothing_to_compare():
    score = Score()
    score.add(_logits(2, 5, 0), [1, 4])
    assert (score.kl_divergence, score.top1_agreement) == (None, None)


def test_large_logits_do_not_overflow():
    probabilities = np.exp(log_softmax(np.array([[1e30, 0.0], [-1e30, -1e30]], np.float32)))
    np.testing.assert_allclose(probabilities, [[1, 0], [0.5, 0.5]])


def test_perplexity_beyond_float64_is_infinite():
    assert Score(tokens=1, nll_sum=1e9).perplexity == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite(bad):
    logits = _logits(3, 5, 0)
    broken = logits.copy()
    broken[1, 2] = bad
    with pytest.raises(CheckpointError, match="Logits of the model"):
        Score().add(broken, [0, 0, 0])
    with pytest.raises(CheckpointError, match="Logits of the reference"):
        Score().add(logits, [0, 0, 0], broken)


@pytest.mark.parametrize("targets", [[0, 5, 0], [0, -1, 0]])
def test_target_outside_the_vocabulary(targets):
    with pytest.raises(UsageError, match="vocabulary"):
        Score().add(_logits(3, 5, 0), targets)


def test_shapes_that_do_not_fit():
    with pytest.raises(UsageError, match="do not fit"):
        Score().add(_logits(3, 5, 0), [0, 1])
    with pytest.raises(UsageError, match="same vocabulary"):
        Score().add(_logits(2, 5, 0), [0, 1], _logits(2, 6, 0))


def test_needs_neither_torch_nor_tvm():
    code = "import sys, awq_tvm.scoring; sys.exit('torch' in sys.modules or 'tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
