"""The conversation itself, with a table-driven language model behind a real tokenizer and template."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from awq_tvm.cli.chat import Conversation
from awq_tvm.prompt.tokenizer import Piece
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.prompt.tokenizers_for_tests import byte_level
from tests.runtime.bigram import Bigram

from .conftest import TEMPLATE

TOKENIZER = byte_level()
START, END = TOKENIZER.token_id("<|im_start|>") or 0, TOKENIZER.token_id("</s>") or 0


def _model(answer: str, context_length: int = 200) -> Bigram:
    """Says `answer` after the start of a turn; no token of it may occur twice."""
    tokens = [START, *TOKENIZER.encode_pieces([Piece(answer, True)]), END]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"a token of {answer!r} occurs twice")
    table = np.zeros((TOKENIZER.vocab_size,) * 2, np.float32)
    for token, following in itertools.pairwise(tokens):
        table[token, following] = 9.0
    return Bigram(table, context_length)


def _conversation(model: Bigram, **changes: Any) -> Conversation:
    engine = Engine(
        model,
        TOKENIZER,
        eos_token_ids=[END],
        vocab_size=TOKENIZER.vocab_size,
        chat_template=TEMPLATE,
    )
    return Conversation(engine, SamplingOptions(), **changes)


def _turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]


def test_answers_are_data_and_timings_are_talk(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _conversation(_model("Yes."))
    assert conversation.take("hello?")
    captured = capsys.readouterr()
    assert captured.out == "Yes.\n"
    assert "written" in captured.err
    assert _turns(conversation) == [("user", "hello?"), ("assistant", "Yes.")]


def test_history_reaches_the_model() -> None:
    model = _model("Yes.")
    seen: list[int] = []
    forward = model.forward

    def watch(seq_ids: Sequence[int], tokens: Sequence[Sequence[int]], **rest: Any) -> np.ndarray:
        seen.extend(tokens[0])
        return forward(seq_ids, tokens, **rest)

    model.forward = watch  # type: ignore[method-assign]
    conversation = _conversation(model, system="be kind")
    conversation.take("one")
    seen.clear()
    conversation.take("two")
    assert TOKENIZER.decode(seen).startswith("system: be kinduser: oneassistant: Yes.user: two")


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _conversation(_model("Yes."))
    assert conversation.take("")
    assert conversation.take("/help")
    assert "/reset" in capsys.readouterr().err
    conversation.take("hello?")
    assert conversation.take("/stats")
    assert "1 answers, 2 turns kept" in capsys.readouterr().err
    assert conversation.take("/reset")
    assert conversation.turns == []
    assert conversation.take("/frobnicate now")
    assert "no command /frobnicate" in capsys.readouterr().err
    assert not conversation.take("/exit")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _conversation(_model("Yes."), as_json=True)
    conversation.take("a")
    conversation.take("b")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["Yes.", "Yes."]
    assert all(line["finish_reason"] == "stop" and line["schema_version"] == 1 for line in lines)
    assert {"token_ids", "timings"} <= lines[0].keys()


class _Interrupted(Bigram):
    """Gets a real SIGINT while it computes the third token."""

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        logits: Literal["last", "all"] = "last",
    ) -> np.ndarray:
        if len(tokens[0]) == 1:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 2:
                signal.raise_signal(signal.SIGINT)
        return super().forward(seq_ids, tokens, logits=logits)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What Python does of itself, also where the tests were started in the background, which ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_stops_the_answer_and_not_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    whole = _model("little girl named")
    model = _Interrupted(whole.table, whole.context_length)
    conversation = _conversation(model)
    assert conversation.take("who?")
    captured = capsys.readouterr()
    assert "[stopped]" in captured.err
    shown = captured.out.strip()
    assert shown
    assert "little girl named".startswith(shown)
    assert shown != "little girl named"
    assert model.sequences == {}
    assert [role for role, _ in _turns(conversation)] == ["user", "assistant"]
    assert conversation.take("again?")
    assert "little girl named" in capsys.readouterr().out


def test_oldest_turns_go_where_the_context_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _conversation(_model("Yes.", context_length=60))
    for number in range(6):
        conversation.take(f"question {number}")
    assert "oldest turns dropped" in capsys.readouterr().err
    assert _turns(conversation)[-2:] == [("user", "question 5"), ("assistant", "Yes.")]
    assert len(conversation.turns) < 12


def test_a_single_line_that_does_not_fit_is_an_error_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = _conversation(_model("Yes.", context_length=40))
    monkeypatch.setattr(conversation, "_interactive", True)
    assert conversation.take("x " * 100)
    assert "the context holds 40" in capsys.readouterr().err
    assert conversation.turns == []
    assert conversation.take("hello")
    assert capsys.readouterr().out == "Yes.\n"


def test_thoughts_of_earlier_answers_are_left_out() -> None:
    conversation = _conversation(_model("<think>Lo</think>Yes"))
    conversation.take("hello")
    assert _turns(conversation)[-1] == ("assistant", "Yes")
