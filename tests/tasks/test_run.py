"""Tasks of the real harness on tiny models, from local files; the figures are those computed by hand."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")

from awq_tvm.errors import CheckpointError, ResourceError, UnsupportedError, UsageError
from awq_tvm.progress import ProgressEvent
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.task_model import task_model_of_checkpoint
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.task_model import task_model_of_bundle
from awq_tvm.tasks.language_model import LanguageModel
from awq_tvm.tasks.request import ScoredModel, TaskName, TaskRequest
from awq_tvm.tasks.run import run_tasks
from tests.cli.conftest import awq_tvm
from tests.prompt.tokenizers_for_tests import byte_level
from tests.quantize.tiny_models import save_tiny_model
from tests.runtime.bigram import Bigram

# The harness looks through its 14,000 task files each time.
slow = pytest.mark.slow

QUESTIONS = [
    {"question": f"q{index} {'ab' * index}?", "choices": ["cat", "a dog", "e"], "answer": index % 3}
    for index in range(8)
]
TEXTS = [{"text": "the quick brown fox " * count} for count in (1, 5, 20)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A task of multiple choice, one of whole texts, one that writes, and one whose data are not there."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, rows in (("questions", QUESTIONS), ("texts", TEXTS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    rolling = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
    writing = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""
    for name, data, body in (
        ("tiny_choice", "questions", choice),
        ("tiny_rolling", "texts", rolling),
        ("tiny_writing", "questions", writing),
        ("tiny_missing", "nothing", choice),
    ):
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\nmetadata: {{version: 2.0}}\ndataset_kwargs:\n"
            f"  data_files: {{test: {tmp_path / data}.jsonl}}\n  cache_dir: {tmp_path / 'cache'}\n{body}"
        )
    return folder


def _request(tasks: Path, *names: str, **changes) -> TaskRequest:
    return TaskRequest(tuple(TaskName(name) for name in names), tasks, **changes)


def _likelihood(model, ids: list[int], last: int) -> float:
    """Of the last tokens of a sequence, by transformers' own model."""
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    return sum(float(logs[place, ids[place + 1]]) for place in range(len(ids) - 1 - last, len(ids) - 1))


def _by_hand(model, question: dict) -> int:
    prompt = [ord(letter) for letter in question["question"]]
    answers = [[ord(letter) for letter in f" {choice}"] for choice in question["choices"]]
    return int(np.argmax([_likelihood(model, prompt + answer, len(answer)) for answer in answers]))


@slow
def test_a_model_by_hand(tmp_path, tasks):
    """Accuracy of choices; and bits of whole texts, one of which is longer than the context."""
    model = save_tiny_model(tmp_path / "model")
    events: list[ProgressEvent] = []
    found = run_tasks(
        task_model_of_checkpoint(str(tmp_path / "model")),
        _request(tasks, "tiny_choice", "tiny_rolling"),
        events.append,
    )
    right = [_by_hand(model, question) == question["answer"] for question in QUESTIONS]
    choice = found["tasks"]["tiny_choice"]
    assert choice["metrics"]["acc"]["value"] == pytest.approx(np.mean(right))
    assert choice["metrics"]["acc"]["stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(8))
    assert (choice["fewshot"], choice["examples"], choice["version"]) == (0, 8, 2.0)
    bits = size = 0.0
    for row in TEXTS:
        ids = [ord(letter) for letter in row["text"]]
        size += len(ids)
        bits -= _likelihood(model, [1, *ids[:256]], min(256, len(ids))) / math.log(2)
        if len(ids) > 256:
            bits -= _likelihood(model, ids[len(ids) - 257 :], len(ids) - 256) / math.log(2)
    rolling = found["tasks"]["tiny_rolling"]["metrics"]
    assert rolling["bits_per_byte"]["value"] == pytest.approx(bits / size, rel=1e-4)
    assert events[0].stage == "score"
    assert any(event.done == event.total == 24 for event in events)


@slow
def test_a_quantized_model_limits_and_solved_examples(tmp_path, tasks):
    save_tiny_model(tmp_path / "model")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn")
    request = TaskRequest((TaskName("tiny_choice", 2),), tasks, limit=4)
    found = run_tasks(task_model_of_checkpoint(str(tmp_path / "q")), request)["tasks"]["tiny_choice"]
    assert (found["fewshot"], found["examples"]) == (2, 4)
    assert 0 <= found["metrics"]["acc"]["value"] <= 1


@slow
def test_as_the_harness_with_transformers(tmp_path, tasks):
    """The harness's own way to run a model gives the same likelihoods for the same questions."""
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerFast

    model = save_tiny_model(tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "model" / "tokenizer.json"), bos_token="\x01", eos_token="\x02"
    )
    theirs = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)
    ours = LanguageModel(task_model_of_checkpoint(str(tmp_path / "model")), lambda event: None)
    pairs = [
        *((question["question"], f" {choice}") for question in QUESTIONS for choice in question["choices"]),
        ("", "alone"),
        ("a space at the end ", "word"),
        ("x" * 300, " far beyond the context"),
    ]
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(pairs)
    ]
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-4)
    assert [one[1] for one in found] == [bool(one[1]) for one in expected]
    texts = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(row["text"],), idx=index)
        for index, row in enumerate(TEXTS)
    ]
    rolling = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(rolling, rel=1e-4)


@slow
def test_a_bundle_by_hand(tmp_path, tasks):
    """A bigram model in place of the compiled one: the likelihoods are sums over its table."""
    tokenizer = byte_level()
    table = np.random.default_rng(0).normal(size=(tokenizer.vocab_size,) * 2).astype(np.float32)
    engine = Engine(Bigram(table, 256), tokenizer, eos_token_ids=[], vocab_size=tokenizer.vocab_size)
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "max_position_embeddings": 10000}')
    model = task_model_of_bundle(engine, tmp_path)
    assert (model.context_length, model.prefix_token) == (256, 1)
    found = run_tasks(model, _request(tasks, "tiny_choice"))
    logs = table - np.log(np.exp(table.astype(np.float64)).sum(1, keepdims=True))
    right = 0
    for question in QUESTIONS:
        prompt = tokenizer.encode(question["question"])
        scores = []
        for choice in question["choices"]:
            ids = tokenizer.encode(f"{question['question']} {choice}")
            scores.append(sum(logs[ids[place - 1], ids[place]] for place in range(len(prompt), len(ids))))
        right += int(np.argmax(scores)) == question["answer"]
    assert found["tasks"]["tiny_choice"]["metrics"]["acc"]["value"] == pytest.approx(right / 8)
    assert engine.executor.sequences == {}


def test_one_run_for_answers_of_one_token():
    """Questions of one input share it; an answer that greedy decoding gives is told apart."""
    asked: list[list[int]] = []

    def logits(ids: np.ndarray) -> np.ndarray:
        asked.append(ids.tolist())
        rows = np.zeros((ids.size, 8), np.float32)
        rows[:, 5] = 1.0
        return rows

    model = LanguageModel(ScoredModel(logits, lambda text, special: [], 8, 16, 1), lambda event: None)
    empty = ("", "")
    found = model._loglikelihood_tokens(
        [(empty, [2, 3], [5]), (empty, [4], [5, 6]), (empty, [2, 3], [6]), (empty, [], [5]), (empty, [2], [])]
    )
    assert asked == [[1], [2, 3], [4, 5]]
    one = math.log(math.e + 7)
    assert [value for value, _ in found] == pytest.approx([1 - one, 1 - 2 * one, -one, 1 - one, 0.0])
    assert [greedy for _, greedy in found] == [True, False, False, True, True]


@slow
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tiny_choyce", UsageError, "tasks, tiny_choice"),
        ("tiny_missing", ResourceError, "its data cannot be read"),
        ("tiny_writing", UnsupportedError, "let the model write"),
    ],
)
def test_refused_before_anything_is_scored(tmp_path, tasks, name, error, message):
    model = ScoredModel(lambda ids: pytest.fail("scored"), lambda text, special: [1], 8, 16, 1)
    with pytest.raises(error, match=message):
        run_tasks(model, _request(tasks, "tiny_choice", name))


@slow
def test_a_task_that_fails_by_itself(tasks):
    (tasks / "broken.yaml").write_text(
        (tasks / "tiny_choice.yaml").read_text().replace("tiny_choice", "broken").replace("answer", "nothing")
    )
    model = ScoredModel(lambda ids: np.zeros((ids.size, 8), np.float32), lambda text, special: [1], 8, 16, 1)
    with pytest.raises(ResourceError, match="The task broken"):
        run_tasks(model, _request(tasks, "broken"))


@pytest.mark.parametrize(
    ("logits", "tokens", "error", "message"),
    [
        (np.nan, [1, 2], CheckpointError, "not finite"),
        (0.0, [1, 9], CheckpointError, "its id is 9"),
        (0.0, [1] * 40, UnsupportedError, "the context holds 16"),
    ],
)
def test_what_cannot_be_scored(logits, tokens, error, message):
    scored = ScoredModel(
        lambda ids: np.full((ids.size, 8), logits, np.float32), lambda text, special: tokens, 8, 16, 1
    )
    model = LanguageModel(scored, lambda event: None)
    with pytest.raises(error, match=message):
        model._loglikelihood_tokens([(("", ""), [1], tokens)])
    with pytest.raises(UnsupportedError, match="write"):
        model.generate_until([])


def _eval(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = awq_tvm("eval", *arguments)
    assert done.returncode == 0, done.stderr
    return done


@slow
def test_the_command_line(tmp_path, tasks):
    save_tiny_model(tmp_path / "model")
    options = ("--tasks", "tiny_choice:1,tiny_rolling", "--include-path", tasks, "--limit", 2)
    found = json.loads(_eval(tmp_path / "model", *options, "--json").stdout)
    assert found["schema_version"] == 1
    assert found["tasks"]["tiny_choice"]["examples"] == 2
    lines = _eval(tmp_path / "model", *options).stdout.splitlines()
    assert lines[0].split() == ["task", "few-shot", "examples", "metric", "value", "stderr"]
    acc = f"{found['tasks']['tiny_choice']['metrics']['acc']['value']:.4f}"
    assert lines[1].split()[:5] == ["tiny_choice", "1", "2", "acc", acc]
    assert len(lines) == 4
