"""What is asked for is checked before the harness is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.cli.main import run
from awq_tvm.errors import ResourceError, UnsupportedError, UsageError
from awq_tvm.tasks import request
from awq_tvm.tasks.request import TaskName, context_length_of, parse_tasks, prefix_token_of


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(request, "find_spec", lambda name: object())


@pytest.mark.usefixtures("installed")
def test_names_and_numbers(tmp_path):
    found = parse_tasks("hellaswag, arc_easy:25,boolq:0", include_path=tmp_path, limit=3)
    assert found.tasks == (TaskName("hellaswag"), TaskName("arc_easy", 25), TaskName("boolq", 0))
    assert (found.include_path, found.limit) == (tmp_path, 3)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "cannot be read"),
        ("a,,b", {}, "cannot be read"),
        ("a:", {}, "found 'a:'"),
        ("a:x", {}, "found 'a:x'"),
        ("a:-1", {}, "cannot be read"),
        ("a,a:2", {}, "named twice"),
        ("a", {"limit": 0}, "at least 1"),
        ("a", {"include_path": Path("nowhere")}, "nowhere is not a directory"),
    ],
)
def test_what_cannot_be_meant(text, changes, message):
    with pytest.raises(UsageError, match=message):
        parse_tasks(text, **changes)


def test_without_the_harness(monkeypatch, capsys):
    monkeypatch.setattr(request, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="no package named lm_eval"):
        parse_tasks("hellaswag")
    assert run(["eval", "model", "--tasks", "hellaswag"]) == 7
    assert "pip install 'awq-tvm[tasks]'" in capsys.readouterr().err


def test_where_a_text_begins():
    assert prefix_token_of({"bos_token_id": 1, "eos_token_id": 2}) == 1
    assert prefix_token_of({"bos_token_id": None, "eos_token_id": [3, 4]}) == 3
    with pytest.raises(UnsupportedError, match="neither bos_token_id nor eos_token_id"):
        prefix_token_of({})


def test_lengths():
    assert context_length_of({"max_position_embeddings": 512}) == 512
    assert context_length_of({"n_positions": 1024}) == 1024
    assert context_length_of({"max_position_embeddings": 131072}) == 4096
    assert context_length_of({}) == 2048


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "neither a text nor tasks"),
        (("--text", "t", "--tasks", "a"), "does not go with --tasks"),
        (("--reference", "m", "--tasks", "a"), "does not go with --tasks"),
        (("--text", "t", "--limit", "1"), "goes with --tasks"),
        (("--text", "t", "--include-path", "."), "goes with --tasks"),
    ],
)
def test_options_that_do_not_fit(capsys, options, message):
    assert run(["eval", "model", *options]) == 2
    assert message in capsys.readouterr().err
