"""Scores and models in PyTorch, against transformers' own classes and its own loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UnsupportedError, UsageError
from awq_tvm.quantize.evaluate import evaluate_torch, score_tokens
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.reference import reference_logits
from awq_tvm.quantize.torch_model import build_model, build_skeleton, empty, fast_matmul, fill
from tests.quantize.tiny_models import FAMILIES, save_tiny_model, write_text

ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in FAMILIES),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        *(("llama", {"rope_parameters": rope}) for rope in ROPES.values()),
    ],
    ids=str,
)
def test_the_model_is_the_one_transformers_loads(tmp_path, family, changes):
    original = save_tiny_model(tmp_path, family, **changes)
    built = build_model(open_checkpoint(str(tmp_path)))
    ids = torch.arange(100).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(built(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-5)
    assert not any(parameter.is_meta for parameter in built.parameters())
    assert (built.lm_head.weight is built.get_input_embeddings().weight) == bool(
        changes.get("tie_word_embeddings")
    )


def test_perplexity_is_that_of_transformers_loss(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 150)
    ids = torch.tensor([ord(letter) for letter in text.read_text()])
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, 150, 64):
            piece = ids[start : start + 64].unsqueeze(0)
            total += float(model(piece, labels=piece).loss) * (piece.numel() - 1)
            count += piece.numel() - 1
    figures = evaluate_torch(str(tmp_path / "model"), text, context=64)
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert figures["tokens"] == count
    assert figures["kl_divergence"] is None


def test_quantized_against_its_original(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 500)
    figures = {}
    for bits in (3, 8):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / f"q{bits}", method="rtn", bits=bits)
        figures[bits] = evaluate_torch(
            str(tmp_path / f"q{bits}"), text, tokens=200, context=100, reference=str(tmp_path / "model")
        )
        assert figures[bits]["tokens"] == 198
    assert 0 < figures[8]["kl_divergence"] < 0.1 * figures[3]["kl_divergence"]
    assert figures[8]["top1_agreement"] > figures[3]["top1_agreement"]


def test_reference_logits_are_the_models(tmp_path):
    model = save_tiny_model(tmp_path)
    with torch.no_grad():
        expected = model(torch.arange(20).unsqueeze(0)).logits[0].numpy()
    np.testing.assert_allclose(reference_logits(str(tmp_path))(np.arange(20)), expected, rtol=1e-4, atol=1e-4)


def test_bad_requests(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 500)
    with pytest.raises(UsageError, match="at least 2"):
        evaluate_torch(str(tmp_path / "model"), text, tokens=1)
    with pytest.raises(UsageError, match="cannot be read"):
        evaluate_torch(str(tmp_path / "model"), tmp_path / "nowhere.txt")
    with pytest.raises(UsageError, match="context"):
        evaluate_torch(str(tmp_path / "model"), text, context=1)
    with pytest.raises(UsageError, match="vocabulary"):
        score_tokens(build_model(open_checkpoint(str(tmp_path / "model"))), np.array([1, 128]), context=8)


def test_a_part_can_be_filled_and_emptied(tmp_path):
    original = save_tiny_model(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    skeleton = build_skeleton(checkpoint.config)
    block = skeleton.model.layers[1]
    assert all(parameter.is_meta for parameter in block.parameters())
    fill(block, "model.layers.1", checkpoint)
    assert torch.equal(block.mlp.up_proj.weight, original.model.layers[1].mlp.up_proj.weight)
    assert all(parameter.is_meta for parameter in skeleton.model.layers[0].parameters())
    empty(block)
    assert all(parameter.is_meta for parameter in block.parameters())


def test_a_weight_of_another_shape(tmp_path):
    save_tiny_model(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    skeleton = build_skeleton({**checkpoint.config, "intermediate_size": 96})
    with pytest.raises(CheckpointError, match=r"(?s)gate_proj.*\[128, 64\], needed \[96, 64\]"):
        fill(skeleton.model.layers[0], "model.layers.0", checkpoint)


def test_config_that_no_network_can_be_made_of(tmp_path):
    save_tiny_model(tmp_path)
    config = open_checkpoint(str(tmp_path)).config
    with pytest.raises(CheckpointError, match="No network"):
        build_skeleton({**config, "num_attention_heads": "many"})
    with pytest.raises(UnsupportedError):
        build_skeleton({**config, "model_type": "rwkv"})


def test_fast_matmul_is_exact_and_leaves_the_setting_alone():
    before = torch.get_float32_matmul_precision()
    a = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    with fast_matmul():
        product = a @ a.T
    exact = a.double() @ a.double().T
    assert float((product.double() - exact).norm() / exact.norm()) < 2e-6
    assert torch.get_float32_matmul_precision() == before
