"""Quantized models against PyTorch with the same dequantized weights.

W = (q - z) * s is exact in float32 for up to 8-bit codes and float16 scales, so both sides hold the same
weights, and the bound is that of float32 rounding, ``tiny.TOLERANCE``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.checkpoint import PER_CHANNEL, QuantizationScheme, open_checkpoint
from tests.support import tiny_decoder as tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tiny.Compiled:
    """4 bits, biases on all linears, untied head."""
    return tiny.quantized_llama(tmp_path_factory)


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "qwen2": {"bits": 8, "group_size": 16},
    "qwen3": {"bits": 4, "group_size": 32},
}


@pytest.fixture(scope="module", params=EMBEDDINGS)
def tied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny.Compiled:
    """The embedding, which is also the head, is quantized too."""
    model = tiny.make_model(request.param, tie_word_embeddings=True, head_dim=16)
    folder = tmp_path_factory.mktemp(request.param)
    return tiny.compile_quantized(model, folder, embedding=True, **EMBEDDINGS[request.param])


MIXED = {
    "model.layers.0.mlp.down_proj": QuantizationScheme(8, PER_CHANNEL),
    "model.layers.0.self_attn.v_proj": QuantizationScheme(3, 32),
    "model.layers.1.mlp.up_proj": QuantizationScheme(2, 16),
    "model.layers.1.self_attn.o_proj": QuantizationScheme(4, PER_CHANNEL),
    "model.embed_tokens": QuantizationScheme(8, 32),
    "lm_head": QuantizationScheme(4, 64),
}


def test_widths_and_groups_may_differ(tmp_path: Path) -> None:
    compiled = tiny.compile_quantized(tiny.make_model("llama"), tmp_path, exceptions=MIXED)
    ids, executor = tiny.tokens(33), compiled.executor()
    sequence = executor.new_sequence()
    rows = [executor.forward([sequence], [part], logits="all") for part in (ids[:32], ids[32:])]
    assert tiny.relative_error(np.concatenate(rows), tiny.torch_logits(compiled.model, ids)) < tiny.TOLERANCE
    checkpoint = open_checkpoint(str(compiled.checkpoint))
    assert checkpoint.scheme is not None
    assert checkpoint.scheme.exceptions == MIXED
    assert set(checkpoint.tensors) == {name for name in checkpoint.tensors if "norm" in name}


def test_prefill_and_decode_agree(llama: tiny.Compiled) -> None:
    ids = tiny.tokens(150)
    expected = tiny.torch_logits(llama.model, ids)
    executor = llama.executor()
    sequence = executor.new_sequence()
    rows = [
        executor.forward([sequence], [part], logits="all") for part in (ids[:141], *([t] for t in ids[141:]))
    ]
    assert tiny.relative_error(np.concatenate(rows), expected) < tiny.TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17])
def test_every_number_of_rows_agrees(llama: tiny.Compiled, count: int) -> None:
    """Kernels differ by the number of rows: one sequence of each length, all logits."""
    ids = tiny.tokens(count, seed=count)
    executor = llama.executor()
    found = executor.forward([executor.new_sequence()], [ids], logits="all")
    assert tiny.relative_error(found, tiny.torch_logits(llama.model, ids)) < tiny.TOLERANCE


def test_a_batch_of_decoding_sequences_agrees(llama: tiny.Compiled) -> None:
    executor = llama.executor()
    prompts = [tiny.tokens(5 + 3 * i, seed=i) for i in range(4)]
    sequences = [executor.new_sequence() for _ in prompts]
    executor.forward(sequences, [prompt[:-1] for prompt in prompts])
    rows = executor.forward(sequences, [prompt[-1:] for prompt in prompts])
    for row, prompt in zip(rows, prompts, strict=True):
        assert tiny.relative_error(row, tiny.torch_logits(llama.model, prompt)[-1]) < tiny.TOLERANCE


def test_quantization_is_what_is_tested(llama: tiny.Compiled) -> None:
    """The dense weights give other logits, so agreement with the dequantized ones says something."""
    dense = tiny.make_model("llama", attention_bias=True, mlp_bias=True)
    ids = tiny.tokens(20)
    assert tiny.relative_error(tiny.torch_logits(dense, ids), tiny.torch_logits(llama.model, ids)) > 0.01


def test_a_quantized_embedding_and_head_agree(tied: tiny.Compiled) -> None:
    ids = tiny.tokens(40)
    executor = tied.executor()
    sequence = executor.new_sequence()
    rows = [
        executor.forward([sequence], [part], logits="all") for part in (ids[:33], *([t] for t in ids[33:]))
    ]
    assert tiny.relative_error(np.concatenate(rows), tiny.torch_logits(tied.model, ids)) < tiny.TOLERANCE


def test_a_quantized_embedding_is_stored_once(tied: tiny.Compiled) -> None:
    bundle = open_bundle(tied.bundle)
    with safe_open(bundle.weights, framework="numpy") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118  (no iterator)
    table = {name: size for name, size in sizes.items() if "embed_tokens" in name}
    assert len(table) == 3
    assert not any("lm_head" in name for name in sizes)
    bits = json.loads((tied.checkpoint / "config.json").read_text())["quantization_config"].get("bits", 8)
    rows = -(-tiny.VOCAB // 16) * 16  # padded to whole blocks
    assert max(table.values()) == rows * tiny.HIDDEN * bits // 8
