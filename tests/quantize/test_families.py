"""Every family that can be quantized: its blocks are traced right, and its files hold what was computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from awq_tvm.checkpoint import linears_to_quantize, open_checkpoint
from awq_tvm.compile.driver import compile_model
from awq_tvm.errors import UnsupportedError
from awq_tvm.quantize.architecture import architectures_of, linears_of
from awq_tvm.quantize.block_calls import catch_block_inputs, run_block
from awq_tvm.quantize.families import family_of
from awq_tvm.quantize.folding import absorb_into_norm, mean_over_shared_rows, scales_of_rows
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.plain_linears import replace_by_linears
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import (
    ALL_FAMILIES,
    FAMILIES,
    VOCABULARY,
    save_tiny_model,
    tiny_model,
    write_text,
)

# What feeds each group of linears, in the order of the data flow: a norm or a linear; None where a nonlinear
# activation is between.
_EXPERTS = tuple(f"mlp.experts.{number}.up_proj" for number in range(4))
_COMPRESSED = (
    "input_layernorm",
    "self_attn.q_a_layernorm",
    "self_attn.kv_a_layernorm",
    "self_attn.kv_b_proj",
)
_LESS_COMPRESSED = ("input_layernorm", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj")
FEEDERS = {
    "gemma2": ("input_layernorm", "self_attn.v_proj", "pre_feedforward_layernorm", "mlp.up_proj"),
    "gemma3_text": ("input_layernorm", "self_attn.v_proj", "pre_feedforward_layernorm", "mlp.up_proj"),
    "phi3": ("input_layernorm", "self_attn.qkv_proj", "post_attention_layernorm", "mlp.gate_up_proj"),
    "opt": ("self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm", "fc1"),
    "gpt_neox": ("input_layernorm", "attention.query_key_value", "post_attention_layernorm", None),
    "falcon-7b": ("input_layernorm", "self_attention.query_key_value", None),
    "falcon-40b": ("ln_attn", "self_attention.query_key_value", "ln_mlp", None),
    "falcon-rw": ("input_layernorm", "self_attention.query_key_value", "post_attention_layernorm", None),
    "bloom": ("input_layernorm", "self_attention.query_key_value", "post_attention_layernorm", None),
    "mpt": ("norm_1", "attn.Wqkv", "norm_2", None),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_bigcode-mha"), ("ln_1", "attn.c_attn", "ln_2", None)),
    "mixtral": ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", *_EXPERTS),
    "qwen3_moe": ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", *_EXPERTS),
    # Blocks that differ: the first has an MLP.
    "qwen2_moe": (
        ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"),
        (
            "input_layernorm",
            "self_attn.v_proj",
            "post_attention_layernorm",
            "mlp.shared_expert.up_proj",
            *_EXPERTS,
        ),
    ),
    "deepseek_v2": (
        (*_COMPRESSED, "post_attention_layernorm", "mlp.up_proj"),
        (*_COMPRESSED, "post_attention_layernorm", *_EXPERTS, "mlp.shared_experts.up_proj"),
    ),
    "deepseek_v2-lite": (
        (*_LESS_COMPRESSED, "post_attention_layernorm", "mlp.up_proj"),
        (*_LESS_COMPRESSED, "post_attention_layernorm", *_EXPERTS, "mlp.shared_experts.up_proj"),
    ),
}


# Whose search is tried in every run of the tests: norms of 1 + weight, fused projections, [K, N] matrices, experts.
QUICK = ("gemma2", "phi3", "gpt2", "qwen2_moe")


@pytest.mark.parametrize("name", FEEDERS)
def test_tracing_finds_what_feeds_each_group(name):
    model = tiny_model(name)
    replace_by_linears(model)
    feeders = FEEDERS[name] if isinstance(FEEDERS[name][0], tuple) else (FEEDERS[name],) * 2
    architectures = architectures_of(model, family_of(model.config.to_dict()))
    for architecture, of_block in zip(architectures, feeders, strict=True):
        assert tuple(group.feeder for group in architecture.groups) == of_block
        offsets = {group.norm_offset for group in architecture.groups if group.feeder and not group.rows}
        assert offsets == {1.0 if name.startswith("gemma") else 0.0}


@pytest.mark.parametrize("name", FAMILIES)
def test_traced_linears_are_those_of_the_checkpoint_reader(name):
    config = tiny_model(name).config.to_dict()
    assert linears_of(config) == linears_to_quantize(config)


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_folding_leaves_the_full_precision_output_unchanged(name):
    """Random scales, far from 1, moved from every group into what feeds it; the model's logits stay."""
    model = tiny_model(name)
    replace_by_linears(model)
    family = family_of(model.config.to_dict())
    ids = torch.randint(0, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(5)
    blocks = list(model.get_submodule(family.blocks).children())
    with torch.no_grad():
        entering, arguments = catch_block_inputs(model, family, ids)
        wanted = model(ids).logits
        before = run_block(blocks[0], entering, arguments[0])
        for block, architecture in zip(blocks, architectures_of(model, family), strict=True):
            for group in architecture.groups:
                if group.feeder is not None:
                    _fold(block, group, generator)
        after = run_block(blocks[0], entering, arguments[0])
        found = model(ids).logits
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())
    assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())


def _fold(block, group, generator):
    feeder = block.get_submodule(group.feeder)
    inputs = block.get_submodule(group.linears[0]).weight.shape[1]
    scales = torch.rand(inputs, generator=generator) * 8 + 0.1
    if group.feeder_is_linear:
        scales = mean_over_shared_rows(scales, group.rows)
        divisors = scales_of_rows(scales, group.rows, feeder.weight.shape[0])
        feeder.weight /= divisors.unsqueeze(1)
    else:
        weight, scales = absorb_into_norm(feeder.weight, scales, group.norm_offset)
        feeder.weight.copy_(weight.float())
        divisors = scales
    if getattr(feeder, "bias", None) is not None:
        feeder.bias /= divisors
    for name in (*group.linears, *group.followers):
        block.get_submodule(name).weight *= scales


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "rtn") for name in ALL_FAMILIES),
        *((name, "awq") for name in QUICK),
        *(pytest.param(name, "awq", marks=pytest.mark.slow) for name in ALL_FAMILIES if name not in QUICK),
    ],
)
def test_the_quantized_model_computes_with_the_dequantized_weights(tmp_path, name, method):
    """Logits of the folder read back are those of the original network with the written weights put in."""
    original = save_tiny_model(tmp_path / "model", name)
    replace_by_linears(original)
    report = quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method=method,
        bits=8,
        calibration=str(write_text(tmp_path / "text.txt")),
        samples=2,
        sequence_length=24,
        options=AwqOptions(scale_steps=4, search_tokens=48),
    )
    written = in_network_terms(open_checkpoint(str(tmp_path / "q")))
    config = original.config.to_dict()
    assert set(written.quantized) == set(linears_of(config))
    read_back = build_model(written)
    ids = torch.randint(0, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = original(ids).logits
        found = read_back(ids).logits
        for module in written.quantized:
            weight = torch.from_numpy(written.read_quantized(module).dequantize())
            original.get_submodule(module).weight.copy_(weight)
        for parameter, info in written.tensors.items():
            assert info.dtype == "float16"
            values = torch.from_numpy(np.array(written.read(parameter), np.float32))
            original.get_parameter(written.names.in_network(parameter)).copy_(values)
        same = original(ids).logits
    assert float((found - same).abs().max()) <= 1e-5 * float(same.abs().max())
    # Scales that were folded wrongly give a relative error of about 1.4. Most tokens count, not all: where a router
    # all but hesitates, a small change before it sends a token to another expert.
    assert float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median()) < 0.1
    if method == "awq":
        assert all(block.loss_after <= block.loss_before for block in report.blocks)


@pytest.mark.parametrize("name", [name for name in ALL_FAMILIES if name not in FAMILIES])
def test_compiling_is_refused_for_now(tmp_path, name):
    save_tiny_model(tmp_path / "model", name)
    with pytest.raises(UnsupportedError, match="is not supported"):
        compile_model(str(tmp_path / "model"), tmp_path / "bundle", target="x86-64-v3")
    assert not (tmp_path / "bundle").exists()


def test_names_of_files_are_kept(tmp_path):
    """GPT-NeoX calls its head embed_out on disk; some files leave out what all names begin with."""
    save_tiny_model(tmp_path / "model", "gpt_neox")
    _without_prefix(tmp_path / "model" / "model.safetensors", "gpt_neox.")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn", quantize_lm_head=8)
    written = open_checkpoint(str(tmp_path / "q"))
    assert "layers.0.attention.dense" in written.quantized
    assert "embed_out" in written.quantized
    assert "final_layer_norm.weight" in written.tensors
    assert build_model(written).lm_head.weight.any()


def _without_prefix(path, prefix):
    weights = {name.removeprefix(prefix): array for name, array in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
