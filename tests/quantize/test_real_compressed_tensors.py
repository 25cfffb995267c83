"""Folders that `quantize` writes, read by the real compressed-tensors library, and by transformers through it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from awq_tvm.checkpoint import PER_CHANNEL, QuantizationScheme, open_checkpoint
from awq_tvm.quantize.quantize import quantize_checkpoint
from tests.quantize.tiny_models import save_tiny_model, write_text
from tests.support import tiny_decoder

pytest.importorskip("compressed_tensors")


def check_with_the_library(folder: Path) -> None:
    """The library finds a scheme for exactly our quantized modules, and decompresses them to our weights."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    config = json.loads((folder / "config.json").read_text())
    section = {key: value for key, value in config["quantization_config"].items() if key != "quant_method"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    apply_quantization_config(model, QuantizationConfig.model_validate(section))
    schemes = {
        name: module.quantization_scheme
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }
    written, tensors = open_checkpoint(str(folder)), load_file(folder / "model.safetensors")
    assert set(schemes) == set(written.quantized)
    for name, scheme in schemes.items():
        stored = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        found = PackedQuantizationCompressor.decompress(stored, scheme)["weight"].float().numpy()
        wanted = written.read_quantized(name).dequantize()
        np.testing.assert_allclose(found, wanted, rtol=2**-10, atol=1e-7, err_msg=name)


def check_with_transformers(folder: Path) -> None:
    """transformers, which knows one scheme a model, loads the weights that we dequantize."""
    from transformers import CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=CompressedTensorsConfig(run_compressed=False), dtype=torch.float32
    )
    written = open_checkpoint(str(folder))
    for name in written.quantized:
        found = model.get_submodule(name).weight.detach().numpy()
        wanted = written.read_quantized(name).dequantize()
        np.testing.assert_allclose(found, wanted, rtol=2**-10, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (4, True), (8, True), (3, False), (8, False)])
def test_one_width(tmp_path, bits, symmetric):
    save_tiny_model(tmp_path / "model")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn", bits=bits, symmetric=symmetric)
    check_with_the_library(tmp_path / "q")
    check_with_transformers(tmp_path / "q")


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (4, True), (8, False)])
def test_one_group_a_row(tmp_path, bits, symmetric):
    save_tiny_model(tmp_path / "model")
    quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method="rtn",
        bits=bits,
        group_size=PER_CHANNEL,
        symmetric=symmetric,
    )
    written = open_checkpoint(str(tmp_path / "q"))
    assert written.read_quantized("model.layers.0.mlp.down_proj").scales.shape == (64, 1)
    check_with_the_library(tmp_path / "q")
    check_with_transformers(tmp_path / "q")


def test_widths_and_groups_that_differ(tmp_path):
    exceptions = {
        "model.layers.0.mlp.down_proj": QuantizationScheme(8, PER_CHANNEL),
        "model.layers.0.self_attn.v_proj": QuantizationScheme(3, 32),
        "model.layers.1.self_attn.o_proj": QuantizationScheme(4, PER_CHANNEL),
        "model.embed_tokens": QuantizationScheme(8, 32),
        "lm_head": QuantizationScheme(8, 32),
    }
    model = tiny_decoder.make_model("llama")
    folder = tiny_decoder.save_quantized(model, tmp_path / "q", exceptions=exceptions)
    check_with_the_library(folder)
    written = open_checkpoint(str(folder))
    assert written.read_quantized("model.layers.0.mlp.down_proj").group_size == 96
    assert written.read_quantized("model.layers.1.mlp.down_proj").group_size == 32


@pytest.mark.parametrize("symmetric", [False, True])
def test_widths_chosen_by_budget(tmp_path, symmetric):
    save_tiny_model(tmp_path / "model")
    quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method="awq",
        bits="auto:3.6",
        symmetric=symmetric,
        calibration=str(write_text(tmp_path / "text.txt")),
        samples=2,
        sequence_length=32,
    )
    written = open_checkpoint(str(tmp_path / "q"))
    assert written.scheme is not None
    assert written.scheme.exceptions
    check_with_the_library(tmp_path / "q")


@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (4, True)])
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head(tmp_path, bits, symmetric, tied):
    save_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method="rtn",
        symmetric=symmetric,
        quantize_embedding=bits,
        quantize_lm_head=bits,
    )
    assert len(open_checkpoint(str(tmp_path / "q")).quantized) == 14 + (1 if tied else 2)
    check_with_the_library(tmp_path / "q")
