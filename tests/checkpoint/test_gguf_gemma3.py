"""Gemma 3 in GGUF, written by the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.checkpoint.gguf_gemma3 import gemma3_keys
from awq_tvm.errors import CheckpointError

from .tiny_models import HEAD_DIM, LAYERS, VOCAB, save_gguf, tiny_config, tiny_weights


def saved(path: Path, config: dict[str, Any] | None = None, **metadata: Any) -> Path:
    config = config or tiny_config("gemma3_text", tie_word_embeddings=True)
    fields = {f"gemma3.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return save_gguf(path, config, tiny_weights(config), metadata=fields)


def test_names_values_and_config(tmp_path: Path) -> None:
    config = tiny_config("gemma3_text", tie_word_embeddings=True)
    weights = tiny_weights(config)
    checkpoint = open_checkpoint(saved(tmp_path / "m.gguf"))
    assert set(checkpoint.tensors) == set(weights)
    for name, values in weights.items():
        np.testing.assert_allclose(checkpoint.read(name), values, rtol=0, atol=3e-7, err_msg=name)
    assert {key: checkpoint.config[key] for key in config} == config
    assert checkpoint.config["final_logit_softcapping"] is None


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from awq_tvm.quantize.torch_model import build_model

    # Longer than the windows, and with two RoPE bases, so that a layer taken for another kind shows.
    config = tiny_config("gemma3_text", tie_word_embeddings=True, query_pre_attn_scalar=HEAD_DIM)
    parsed = transformers.AutoConfig.for_model(**config)
    theirs = transformers.AutoModelForCausalLM.from_config(parsed, dtype=torch.float32).eval()
    weights = {name: torch.from_numpy(value) * 0.3 for name, value in tiny_weights(config).items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    theirs.tie_weights()
    path = save_gguf(tmp_path / "m.gguf", config, {name: value.numpy() for name, value in weights.items()})
    ids = torch.arange(VOCAB).unsqueeze(0)
    with torch.no_grad():
        wanted = theirs(ids).logits
        found = build_model(open_checkpoint(path))(ids).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


LOCAL, GLOBAL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"attention__sliding_window_pattern": None}, [LOCAL, LOCAL]),  # every sixth layer sees everything
        ({"attention__sliding_window_pattern": 2}, [LOCAL, GLOBAL]),
        ({"attention__sliding_window_pattern": 1}, [GLOBAL, GLOBAL]),
        ({"attention__sliding_window_pattern": 0}, [LOCAL, LOCAL]),
        ({"attention__sliding_window_pattern": [False, True]}, [GLOBAL, LOCAL]),
        ({"attention__sliding_window": None}, [GLOBAL, GLOBAL]),
    ],
)
def test_layers_with_a_window(tmp_path: Path, metadata: dict[str, Any], expected: list[str]) -> None:
    config = open_checkpoint(saved(tmp_path / "m.gguf", **metadata)).config
    assert config["layer_types"] == expected
    assert config["sliding_window"] == (None if "attention__sliding_window" in metadata else 3)


def test_what_llama_cpp_assumes_when_the_file_is_silent(tmp_path: Path) -> None:
    silent = {"rope__freq_base": None, "rope__freq_base_swa": None, "attention__key_length": None}
    config = open_checkpoint(saved(tmp_path / "m.gguf", **silent)).config
    assert (config["rope_theta"], config["rope_local_base_freq"], config["head_dim"]) == (1e4, 1e4, 8)
    scaled = {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0, "final_logit_softcapping": 30.0}
    config = open_checkpoint(saved(tmp_path / "n.gguf", **scaled)).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert config["final_logit_softcapping"] == 30.0


def test_queries_of_the_largest_are_scaled_by_the_hidden_size(tmp_path: Path) -> None:
    config = tiny_config("gemma3_text", tie_word_embeddings=True, head_dim=16)
    shapes = {"attention__key_length": 16, "block_count": 62, "attention__sliding_window_pattern": None}
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2"):
        open_checkpoint(saved(tmp_path / "bad.gguf", **shapes))
    deep = gemma3_keys({}, {**config, "num_hidden_layers": 62}, "here")
    assert deep["query_pre_attn_scalar"] == config["hidden_size"] // config["num_attention_heads"] == 8
    assert gemma3_keys({}, config, "here")["query_pre_attn_scalar"] == 16


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention__sliding_window_pattern": [True]}, "1 items for 2 layers"),
        ({"attention__sliding_window_pattern": [1, 0]}, "2 items for 2 layers"),
        ({"attention__sliding_window_pattern": "six"}, "neither a number of layers nor a list"),
        ({"attention__sliding_window": "far"}, "sliding_window is 'far'"),
        ({"rope__freq_base_swa": 0.0}, "freq_base_swa is not a number above 0"),
        ({"rope__freq_base_swa": "x"}, "freq_base_swa is not a number above 0"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping is not a number above 0"),
        ({"block_count": None}, "num_hidden_layers is missing"),
        ({"block_count": LAYERS + 1, "attention__sliding_window_pattern": 6}, "missing: model.layers.2"),
    ],
)
def test_metadata_that_lies(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    open_checkpoint(saved(tmp_path / "good.gguf"))  # the good twin
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(saved(tmp_path / "bad.gguf", **metadata))


def test_tokenizer_as_gemma_has_it(tmp_path: Path) -> None:
    """Runs of spaces and newlines are tokens of their own, found before BPE; no space is put in front."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<0xC3>", "<0xA9>"]
    pieces += ["\n", "\n\n", "  ", "   ", "▁", *"abc", "ab", "▁ab", "▁a"]
    types = [3] * 6 + [6, 6] + [4] * 4 + [1] * (VOCAB - 12)
    scores = [-1000.0] * 16 + [-1.0, -2.0, -3.0]
    pieces += [f"zz{i}" for i in range(VOCAB - len(pieces))]
    scores += [-1000.0] * (VOCAB - len(scores))
    config = tiny_config("gemma3_text", tie_word_embeddings=True)
    section = {
        "model": "llama",
        "pre": "default",
        "tokens": pieces,
        "scores": scores,
        "token_type": types,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_bos_token": True,
        "add_space_prefix": False,
    }
    fields: dict[str, Any] = {f"tokenizer.ggml.{key}": value for key, value in section.items()}
    fields["tokenizer.chat_template"] = "<start_of_turn>{{ messages }}<end_of_turn>"
    path = save_gguf(tmp_path / "m.gguf", config, tiny_weights(config), metadata=fields)
    files = open_checkpoint(path).side_files
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    text = "ab ab  c\n\n\na   bé<end_of_turn>"
    encoded = tokenizer.encode(text)
    assert encoded.tokens == [
        *["<bos>", "ab", "▁ab", "  ", "c", "\n\n", "\n", "a", "   ", "b", "<0xC3>", "<0xA9>"],
        "<end_of_turn>",
    ]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == text.removesuffix("<end_of_turn>")
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [1, 5]


def test_llama_cpp_computes_the_same(tmp_path: Path) -> None:
    """The file that these tests write is one that llama.cpp runs, past the windows, to our logits."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from awq_tvm.quantize.reference import reference_logits

    config = tiny_config("gemma3_text", tie_word_embeddings=True, rope_local_base_freq=10000.0)
    weights = {
        name: values * 0.3 if values.ndim == 2 else values for name, values in tiny_weights(config).items()
    }
    file = save_gguf(tmp_path / "m.gguf", config, weights)
    ids = [1, 5, 17, 40, 9, 9, 23, 30, 31, 2, 7]
    model = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    model.eval(ids)
    found = np.array(model._scores[: len(ids)])
    model.close()
    expected = reference_logits(str(file))(np.array(ids))
    assert np.linalg.norm(found - expected) < 0.002 * np.linalg.norm(expected)
