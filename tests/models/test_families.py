"""Every family against transformers, layer by layer and logit by logit, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.runtime.executor import Executor
from tests.support import tiny_decoder as tiny

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 48}

# Together these hold every feature: tied and untied heads, each bias, each kind of rope, each kind of grouping.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    "mistral": {"tie_word_embeddings": True, "rope_parameters": LINEAR, "sliding_window": tiny.CONTEXT},
    "qwen2": {
        "tie_word_embeddings": True,
        "rope_parameters": YARN,
        "num_key_value_heads": 4,
        "intermediate_size": 80,
    },
    "qwen3": {"head_dim": 32, "num_key_value_heads": 1, "rope_parameters": {**YARN, "attention_factor": 0.7}},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Executor]:
    """A model in PyTorch, and compiled so that it shows its hidden states."""
    model = tiny.make_model(request.param, **FAMILIES[request.param])
    with tiny.hidden_states_shown():
        compiled = tiny.compile_dense(model, tmp_path_factory.mktemp(request.param))
    return model, compiled.executor()


def test_every_layer_of_a_prefill_agrees(family: tuple[Any, Executor]) -> None:
    model, executor = family
    ids = tiny.tokens(70)
    states, logits = tiny.split_states(_run(executor, [ids]))
    *expected, normed = tiny.torch_hidden_states(model, ids)
    for layer, (found, wanted) in enumerate(zip(states, expected, strict=False)):
        assert tiny.relative_error(found, wanted) < tiny.TOLERANCE, f"what enters layer {layer}"
    # transformers hands out the last layer's output after the final norm only.
    assert tiny.relative_error(_rms_norm(model, states[-1]), normed) < tiny.TOLERANCE
    assert tiny.relative_error(logits, tiny.torch_logits(model, ids)) < tiny.TOLERANCE


def test_a_window_is_shorter_than_the_context(tmp_path: Path) -> None:
    model = tiny.make_model("mistral", sliding_window=20)
    executor = tiny.compile_dense(model, tmp_path, context_length=tiny.CONTEXT).executor()
    ids = tiny.tokens(70)
    expected = tiny.torch_logits(model, ids)
    for parts in ([ids], [ids[:33], ids[33:65], *([one] for one in ids[65:])]):
        assert tiny.relative_error(_run(executor, parts), expected) < tiny.TOLERANCE


def test_the_logits_are_not_trivial(family: tuple[Any, Executor]) -> None:
    """Another last token, and the same tokens in another order, give quite other logits."""
    model, _ = family
    ids = tiny.tokens(70)
    last = tiny.torch_logits(model, ids)[-1]
    assert (
        tiny.relative_error(tiny.torch_logits(model, [*ids[:-1], (ids[-1] + 1) % tiny.VOCAB])[-1], last) > 0.1
    )
    assert tiny.relative_error(tiny.torch_logits(model, [*ids[30:-1], *ids[:30], ids[-1]])[-1], last) > 0.01


def test_chunks_and_single_tokens_give_what_one_prefill_gives(family: tuple[Any, Executor]) -> None:
    model, executor = family
    ids = tiny.tokens(50, seed=1)
    rows = _run(executor, [ids[:23], ids[23:24], ids[24:41], *([token] for token in ids[41:])])
    assert tiny.relative_error(tiny.split_states(rows)[1], tiny.torch_logits(model, ids)) < tiny.TOLERANCE


def test_sequences_of_one_batch_do_not_see_each_other(family: tuple[Any, Executor]) -> None:
    model, executor = family
    first, second = tiny.tokens(40, seed=2), tiny.tokens(33, seed=3)
    a, b = executor.new_sequence(), executor.new_sequence()
    expected = [tiny.torch_logits(model, first), tiny.torch_logits(model, second)]
    # One prefills while the other decodes, and once the order is turned round.
    steps = [([a], [first[:20]]), ([b, a], [second[:30], first[20:21]]), ([a, b], [first[21:], second[30:]])]
    at = {a: 0, b: 0}
    for sequences, new in steps:
        rows = executor.forward(sequences, new, logits="last")
        for sequence, part, row in zip(sequences, new, rows, strict=True):
            at[sequence] += len(part)
            wanted = expected[sequence == b][at[sequence] - 1]
            assert tiny.relative_error(row[-tiny.VOCAB :], wanted) < tiny.TOLERANCE
    executor.remove_sequence(a)
    executor.remove_sequence(b)


def _run(executor: Executor, parts: list[list[int]]) -> tiny.Array:
    """Rows for every token of one sequence, read part by part."""
    sequence = executor.new_sequence()
    rows = [executor.forward([sequence], [part], logits="all") for part in parts]
    executor.remove_sequence(sequence)
    return np.concatenate(rows)


def _rms_norm(model: Any, state: tiny.Array) -> tiny.Array:
    wide = state.astype(np.float64)
    weight = model.model.norm.weight.detach().numpy()
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + model.config.rms_norm_eps) * weight
