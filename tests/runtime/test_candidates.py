"""Sampling from a row's candidates is sampling from the row: the same tokens from the same seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from awq_tvm.errors import BundleError
from awq_tvm.runtime.answer import AnswerWriter
from awq_tvm.runtime.logit_row import Candidates, DeviceRow
from awq_tvm.runtime.sampler import Sampler, SamplingOptions
from tests.prompt.tokenizers_for_tests import byte_level

C, V = 64, 3000
TOKENIZER = byte_level()


def candidates(logits: np.ndarray, temperature: float, error: float = 0.0) -> Candidates:
    """As a device would find them, with sums that are off by a part of them."""
    order = np.argsort(-np.where(np.isnan(logits), np.inf, logits), kind="stable")[:C]
    shifted = logits.astype(np.float64) - float(logits.max())
    effective = temperature or 1.0
    total, tempered = (float(np.exp(shifted / t).sum()) * (1 + error) for t in (1.0, effective))
    return Candidates(logits[order], order, total, tempered, effective)


def rows(count: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(5)
    for number in range(count):
        row = random.standard_normal(V) * (1, 2, 4, 8)[number % 4]
        row = np.rint(row * 4) / 4 if number % 3 == 0 else row
        if number % 5 == 0:
            row[random.random(V) < 0.9] = -np.inf
        yield row.astype(np.float32)


def both(options: dict[str, Any], count: int = 60, prompt: tuple[int, ...] = ()) -> tuple[int, int]:
    """Draw from the same rows in both ways; return how many were drawn from candidates, and of how many."""
    settings = SamplingOptions(seed=3, **options)
    whole, part = Sampler(settings, prompt), Sampler(settings, prompt)
    told = 0
    for row in rows(count):
        expected = whole.sample(row)
        token = part.sample_from(candidates(row, settings.temperature, 3e-6))
        told += token is not None
        assert (part.sample(row) if token is None else token) == expected
    return told, count


# Options, and the least of 60 rows of which candidates tell.
CASES: list[tuple[dict[str, Any], int]] = [
    ({}, 60),
    ({"temperature": 0.8, "top_k": 40}, 60),
    ({"temperature": 1.5, "top_k": 64}, 60),
    ({"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05}, 60),
    ({"temperature": 0.7, "top_p": 0.9}, 25),
    ({"temperature": 1.3, "top_p": 0.5}, 15),
    ({"temperature": 1.0, "min_p": 0.1}, 40),
    ({"temperature": 1.0, "top_p": 0.95, "min_p": 0.2}, 40),
    ({"temperature": 1e-9, "top_p": 0.5}, 60 - 15),
    # Penalties that lower logits.
    ({"repetition_penalty": 1.3}, 55),
    ({"presence_penalty": 1.0, "frequency_penalty": 0.5}, 55),
    ({"temperature": 0.9, "top_k": 10, "repetition_penalty": 1.2, "frequency_penalty": 1.0}, 30),
    ({"temperature": 0.9, "min_p": 0.3, "repetition_penalty": 1.1}, 30),
    # What candidates never tell: all chances, more than there are, and penalties with sums.
    ({"temperature": 1.0}, 0),
    ({"temperature": 1.0, "top_k": 65}, 0),
    ({"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 1.0}, 0),
    ({"repetition_penalty": 0.8}, 0),
    ({"presence_penalty": -1.0}, 0),
    ({"temperature": 0.7, "min_p": 1.0}, 0),
]


@pytest.mark.parametrize(("options", "least"), CASES, ids=lambda value: str(value))
def test_the_same_tokens_as_from_all_logits(options: dict[str, Any], least: int) -> None:
    told, count = both(options, prompt=tuple(range(0, V, 7)))
    assert least <= told <= count
    # The first draw of an answer has no tokens of its own to punish.
    if least == 0:
        assert told <= 1


def test_an_edge_that_the_devices_sum_decides_is_left_to_all_logits() -> None:
    row = np.full(V, -np.inf, np.float32)
    row[[7, 9]] = 0.0  # the second begins at exactly a half
    options = SamplingOptions(temperature=1.0, top_p=0.5, seed=0)
    assert Sampler(options).sample_from(candidates(row, 1.0)) is None
    assert Sampler(SamplingOptions(temperature=1.0, top_p=0.4, seed=0)).sample_from(candidates(row, 1.0)) == 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused_in_the_same_words(value: float) -> None:
    row = np.full(V, -np.inf if value == -np.inf else 0.0, np.float32)
    row[[70, 2000]] = value
    Sampler(SamplingOptions()).sample_from(candidates(np.zeros(V, np.float32), 1.0))
    with pytest.raises(BundleError, match="not a number") as of_all:
        Sampler(SamplingOptions()).sample(row)
    order = np.argsort(-np.where(np.isnan(row), np.inf, row), kind="stable")[:C]
    with pytest.raises(BundleError, match="not a number") as of_some:
        Sampler(SamplingOptions()).sample_from(Candidates(row[order], order, np.nan, np.nan, 1.0))
    assert (of_some.value.where, of_some.value.why) == (of_all.value.where, of_all.value.why)


class _Forbidden:
    """A constraint that lets one token through."""

    def mask(self, logits: np.ndarray) -> np.ndarray:
        masked = np.full_like(logits, -np.inf)
        masked[5] = logits[5]
        return masked

    def accept(self, token: int) -> bool:
        return token == 5


def test_an_answer_reads_the_row_only_where_it_must() -> None:
    size = TOKENIZER.vocab_size
    logits = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    reads: list[int] = []

    def read() -> np.ndarray:
        reads.append(1)
        return logits

    def written(row: np.ndarray | DeviceRow, constraint: Any = None, **options: Any) -> Any:
        settings = SamplingOptions(seed=1, **options)
        writer = AnswerWriter(TOKENIZER, settings, [1], ends=(), limit=9, constraint=constraint)
        writer.take(row)
        return writer.drawn[0]

    for options, constraint, expected in (
        ({}, None, 0),
        ({"logprobs": 20}, None, 0),
        ({"temperature": 0.7, "top_k": 5, "logprobs": 3}, None, 0),
        ({"temperature": 0.7}, None, 1),
        ({}, _Forbidden(), 1),
    ):
        reads.clear()
        row = DeviceRow(candidates(logits, float(options.get("temperature", 0))), read)
        drawn, plain = written(row, constraint, **options), written(logits, constraint, **options)
        assert len(reads) == expected
        assert drawn.id == plain.id
        assert drawn.logprob == pytest.approx(plain.logprob, abs=1e-6)
        assert [token for token, _ in drawn.top] == [token for token, _ in plain.top]
        assert [p for _, p in drawn.top] == pytest.approx([p for _, p in plain.top], abs=1e-6)
