"""Models that see: their language model is quantized, all else is carried along, and files keep their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.compile.driver import compile_model
from awq_tvm.errors import CheckpointError, UnsupportedError
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.network_config import language_config
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import (
    ALL_FAMILIES,
    VOCABULARY,
    character_tokenizer,
    randomize,
    write_text,
)

_EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_CLIP = {**_EYES, "model_type": "clip_vision_model", "projection_dim": 16}
_QWEN2_VL = {
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 3, 3]},
}


def _language(family: str, **changes: Any) -> dict[str, Any]:
    return {**ALL_FAMILIES[family], "model_type": family, **changes}


MODELS: dict[str, dict[str, Any]] = {
    "llava": {"text_config": _language("llama"), "vision_config": _CLIP, "image_token_index": 127},
    "llava-mistral": {"text_config": _language("mistral"), "vision_config": _CLIP, "image_token_index": 127},
    "llava-qwen2": {"text_config": _language("qwen2"), "vision_config": _CLIP, "image_token_index": 127},
    "qwen2_vl": {
        "text_config": {**_language("qwen2"), **_QWEN2_VL, "model_type": "qwen2_vl_text"},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        "image_token_id": 127,
        "video_token_id": 126,
        "vision_start_token_id": 125,
        "vision_end_token_id": 124,
    },
    "gemma3": {
        "text_config": _language("gemma3_text", tie_word_embeddings=True),
        "vision_config": {**_EYES, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 127,
    },
}
# What names of the language model's blocks begin with on disk.
BLOCKS = {
    "llava": "language_model.model.layers.",
    "llava-mistral": "language_model.model.layers.",
    "llava-qwen2": "language_model.model.layers.",
    "qwen2_vl": "model.layers.",
    "gemma3": "language_model.model.layers.",
}


def _save(folder: Path, name: str, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(name.partition("-")[0], **{**MODELS[name], **changes})
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomize(model)
    model.eval().save_pretrained(folder)
    character_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text('{"size": 28}')
    return model


def _ids() -> torch.Tensor:
    return torch.randint(0, 120, (1, 40), generator=torch.Generator().manual_seed(1))


def _change(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_the_language_model_alone_computes_what_the_whole_does_on_text(tmp_path, name):
    whole = _save(tmp_path / "model", name)
    language = build_model(open_checkpoint(str(tmp_path / "model")))
    with torch.no_grad():
        assert _change(language(_ids()).logits, whole(_ids()).logits) < 1e-5


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "rtn") for name in MODELS),
        ("qwen2_vl", "awq"),
        *(pytest.param(name, "awq", marks=pytest.mark.slow) for name in MODELS if name != "qwen2_vl"),
    ],
)
def test_only_the_blocks_of_the_language_model_change(tmp_path, name, method):
    """Every name is kept, what sees is the same to the bit, and the whole model still computes."""
    whole = _save(tmp_path / "model", name)
    before = load_file(tmp_path / "model" / "model.safetensors")
    quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method=method,
        bits=8,
        calibration=str(write_text(tmp_path / "text.txt")),
        samples=2,
        sequence_length=24,
        options=AwqOptions(scale_steps=4, search_tokens=48),
    )
    written = open_checkpoint(str(tmp_path / "q"))
    assert len(written.quantized) == 2 * 7
    assert all(linear.startswith(BLOCKS[name]) for linear in written.quantized)
    assert {f"{linear}.weight" for linear in written.quantized} | set(written.tensors) == set(before)
    for tensor in written.tensors:
        assert written.tensors[tensor].dtype == "float16"
        if not tensor.startswith(BLOCKS[name]):
            np.testing.assert_array_equal(written.read(tensor), before[tensor].astype(np.float16))
    # Linears that see must not be taken for quantized ones.
    sees = {
        tensor.removesuffix(".weight") for tensor in before if "vis" in tensor and before[tensor].ndim == 2
    }
    assert {one for one in sees if not one.endswith(("_bias", "in_proj_weight"))} <= set(
        written.scheme.modules_to_not_convert
    )
    assert (tmp_path / "q" / "preprocessor_config.json").read_text() == '{"size": 28}'
    with torch.no_grad():
        wanted, found = whole(_ids()).logits, build_model(written)(_ids()).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_the_config_is_kept(tmp_path, name):
    _save(tmp_path / "model", name)
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn")
    before, after = (json.loads((tmp_path / one / "config.json").read_text()) for one in ("model", "q"))
    assert after.pop("quantization_config")["quant_method"] == "awq"
    assert after.pop("torch_dtype") == "float16"
    del before["dtype"]
    assert after == before
    assert after["model_type"] == name.partition("-")[0]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_files_with_the_names_of_the_modules_are_read_too(tmp_path, name):
    """transformers 4.52 and later, for a while, wrote its own names to disk."""
    whole = _save(tmp_path / "model", name)
    weights = {parameter: values.numpy() for parameter, values in whole.state_dict().items()}
    if name == "gemma3":
        del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn", bits=8)
    written = open_checkpoint(str(tmp_path / "q"))
    assert all(linear.startswith("model.language_model.layers.") for linear in written.quantized)
    assert {f"{linear}.weight" for linear in written.quantized} | set(written.tensors) == set(weights)
    with torch.no_grad():
        wanted, found = whole(_ids()).logits, build_model(written)(_ids()).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_a_flat_config_of_qwen2_vl_is_read_and_kept(tmp_path):
    """As Qwen published it: the language model's keys at the top, positions called "mrope"."""
    whole = _save(tmp_path / "model", "qwen2_vl")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    language = config.pop("text_config")
    del language["model_type"], language["rope_parameters"], language["layer_types"]
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    config = {**language, **config, "rope_scaling": rope, "rope_theta": 500.0}
    path.write_text(json.dumps(config))
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn", bits=8)
    written = open_checkpoint(str(tmp_path / "q"))
    assert written.config["rope_scaling"] == rope
    with torch.no_grad():
        wanted, found = whole(_ids()).logits, build_model(written)(_ids()).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_embedding_and_head_can_be_quantized(tmp_path):
    _save(tmp_path / "model", "llava")
    quantize_checkpoint(
        str(tmp_path / "model"), tmp_path / "q", method="rtn", quantize_embedding=8, quantize_lm_head=8
    )
    written = open_checkpoint(str(tmp_path / "q"))
    assert {"language_model.model.embed_tokens", "language_model.lm_head"} <= set(written.quantized)
    view = in_network_terms(written)
    assert {"model.embed_tokens", "lm_head"} <= set(view.quantized)
    assert view.config["vocab_size"] == VOCABULARY
    assert build_model(written).lm_head.weight.any()


def test_a_language_model_that_was_not_tried_is_refused():
    config = {"model_type": "llava", "text_config": {"model_type": "opt"}}
    with pytest.raises(
        UnsupportedError, match=r"(?s)'llava' with a language model of type 'opt'.*llama, mist"
    ):
        language_config(config)


def test_a_config_that_makes_no_sense_is_refused():
    with pytest.raises(CheckpointError, match="No network can be made"):
        language_config({"model_type": "llava", "text_config": 5})


def test_files_without_a_language_model_are_refused(tmp_path):
    _save(tmp_path / "model", "llava")
    path = tmp_path / "model" / "model.safetensors"
    save_file(
        {name: array for name, array in load_file(path).items() if name.startswith("vision_tower.")},
        path,
        {"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"(?s)no language model.*language_model.model.embed_tokens"):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn")


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_compiling_is_refused_for_now(tmp_path, name):
    _save(tmp_path / "model", name)
    with pytest.raises(UnsupportedError, match="is not supported"):
        compile_model(str(tmp_path / "model"), tmp_path / "bundle", target="x86-64-v3")
    assert not (tmp_path / "bundle").exists()
