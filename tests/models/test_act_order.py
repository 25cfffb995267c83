"""Linears whose groups are of scattered channels, compiled, against PyTorch with the dequantized weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.checkpoint import QuantizationScheme, open_checkpoint
from awq_tvm.errors import UnsupportedError
from tests.support import tiny_decoder as tiny


def test_inputs_are_put_in_the_order_of_the_groups(tmp_path: Path) -> None:
    """Each linear has an order of its own; one has none. Prefill and decode agree with PyTorch."""
    exceptions = {"model.layers.0.mlp.down_proj": QuantizationScheme(8, 16)}
    model = tiny.make_model("llama", attention_bias=True, mlp_bias=True)
    compiled = tiny.compile_quantized(model, tmp_path, group_size=16, exceptions=exceptions, act_order=True)
    checkpoint = open_checkpoint(str(compiled.checkpoint))
    assert checkpoint.scheme == QuantizationScheme(4, 16, True, ("lm_head",), exceptions, act_order=True)
    query, key = (
        checkpoint.read_quantized(f"model.layers.0.self_attn.{part}_proj").group_of for part in "qk"
    )
    assert query is not None
    assert key is not None
    assert (query != key).any()

    ids, executor = tiny.tokens(40), compiled.executor()
    sequence = executor.new_sequence()
    parts = [ids[:33], *([token] for token in ids[33:])]
    rows = [executor.forward([sequence], [part], logits="all") for part in parts]
    assert tiny.relative_error(np.concatenate(rows), tiny.torch_logits(model, ids)) < tiny.TOLERANCE
    with safe_open(open_bundle(compiled.bundle).weights, framework="numpy") as file:
        orders = [name for name in file.keys() if "input_order" in name]  # noqa: SIM118  (no iterator)
    assert len(orders) == 13


def test_without_fusion(tmp_path: Path) -> None:
    model = tiny.make_model("qwen2")
    compiled = tiny.compile_quantized(model, tmp_path, act_order=True, opt=0)
    ids, executor = tiny.tokens(20), compiled.executor()
    found = executor.forward([executor.new_sequence()], [ids], logits="all")
    assert tiny.relative_error(found, tiny.torch_logits(model, ids)) < tiny.TOLERANCE


def test_an_embedding_in_activation_order_is_refused(tmp_path: Path) -> None:
    exceptions = {"model.embed_tokens": QuantizationScheme(4, 32, act_order=True)}
    with pytest.raises(UnsupportedError, match="a token embedding quantized in activation order"):
        tiny.compile_quantized(tiny.make_model("llama"), tmp_path, exceptions=exceptions)
