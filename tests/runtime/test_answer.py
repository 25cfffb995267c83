"""What becomes of logits: the parts of an answer that `Engine` has no use for."""

from __future__ import annotations

import numpy as np
import pytest

from awq_tvm.runtime.answer import AnswerWriter
from awq_tvm.runtime.sampler import SamplingOptions
from tests.prompt.tokenizers_for_tests import byte_level

TOKENIZER = byte_level()
END = TOKENIZER.token_id("</s>") or 0
V = TOKENIZER.vocab_size


def _writer(**options: object) -> AnswerWriter:
    return AnswerWriter(TOKENIZER, SamplingOptions(**options), [1], ends={END}, limit=9)


def _towards(token: int) -> np.ndarray:
    row = np.zeros(V, np.float32)
    row[token] = 9.0
    return row


def test_logprobs_are_those_of_the_model_whatever_the_options() -> None:
    logits = np.random.default_rng(0).normal(size=V).astype(np.float32) * 3
    expected = np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    for options in ({}, {"temperature": 0.3, "top_k": 4, "seed": 1}, {"repetition_penalty": 3.0}):
        writer = _writer(logprobs=5, **options)
        writer.take(logits)
        [drawn] = writer.drawn
        assert drawn.logprob == pytest.approx(expected[drawn.id], abs=1e-6)
        assert [token for token, _ in drawn.top] == list(np.argsort(-expected)[:5])
        assert [value for _, value in drawn.top] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-6)
    writer = _writer(logprobs=0)
    writer.take(logits)
    assert writer.drawn[0].top == ()
    assert writer.drawn[0].logprob == pytest.approx(expected.max(), abs=1e-6)
    writer = _writer()
    writer.take(logits)
    assert writer.drawn[0].logprob is None


def test_offsets_are_where_the_text_of_a_token_begins() -> None:
    text = "Once upon a 🦜 girl"
    tokens = TOKENIZER.encode(text)
    writer = _writer(max_tokens=64)
    writer.limit = 64
    for token in [*tokens, END]:
        writer.take(_towards(token))
    assert writer.text == text
    assert writer.token_ids == tuple(tokens)
    assert writer.finish_reason == "stop"
    for position, drawn in enumerate(writer.drawn[:-1]):
        whole = TOKENIZER.decode(tokens[:position])
        assert drawn.offset == len(whole.rstrip("\ufffd"))


class _Only:
    """A constraint: these tokens, in this order."""

    def __init__(self, tokens: list[int]) -> None:
        self.left = list(tokens)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        masked = np.full_like(logits, -np.inf)
        masked[self.left[0]] = logits[self.left[0]]
        return masked

    def accept(self, token: int) -> bool:
        assert token == self.left.pop(0)
        return not self.left


def test_a_constraint_decides_what_is_drawn_and_where_it_ends() -> None:
    wanted = TOKENIZER.encode(" girl was")
    for options in ({}, {"temperature": 2.0, "seed": 0, "top_p": 0.5}):
        writer = AnswerWriter(
            TOKENIZER,
            SamplingOptions(logprobs=1, **options),
            [1],
            ends={END},
            limit=50,
            constraint=_Only(wanted),
        )
        while writer.finish_reason is None:
            writer.take(_towards(3))
        assert writer.token_ids == tuple(wanted)
        assert writer.text == " girl was"
        assert writer.finish_reason == "stop"
        # The likeliest token is the model's, not the constraint's.
        assert writer.drawn[0].top[0][0] == 3
