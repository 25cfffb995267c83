"""config.json's words and what they mean for a model."""

from __future__ import annotations

from typing import Any

import pytest

from awq_tvm.errors import UnsupportedError
from awq_tvm.models.config import ModelConfig

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def _config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_hugging_face({**BASE, **changes})


def test_what_is_not_said_is_what_transformers_assumes() -> None:
    config = _config()
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert (config.hidden_act, config.rms_norm_eps) == ("silu", 1e-6)
    assert not config.tie_word_embeddings
    assert not any((config.attention_bias, config.attention_output_bias, config.mlp_bias, config.qk_norm))
    assert config.rope.kind == "default"
    assert config.sliding_window is None


def test_what_is_said_counts() -> None:
    config = _config(
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, mlp_bias=True, rms_norm_eps=1e-5
    )
    assert (config.num_key_value_heads, config.head_dim, config.rope.head_dim) == (2, 32, 32)
    assert config.tie_word_embeddings
    assert config.mlp_bias
    assert config.rms_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("changes", "on_qkv", "on_output"),
    [
        ({"model_type": "llama", "attention_bias": True}, True, True),
        ({"model_type": "qwen2"}, True, False),
        ({"model_type": "qwen2", "attention_bias": True}, True, False),
        ({"model_type": "qwen3"}, False, False),
        ({"model_type": "qwen3", "attention_bias": True}, True, True),
        ({"model_type": "mistral"}, False, False),
    ],
)
def test_biases_of_attention(changes: dict[str, Any], on_qkv: bool, on_output: bool) -> None:
    config = _config(**changes)
    assert (config.attention_bias, config.attention_output_bias) == (on_qkv, on_output)


def test_only_qwen3_normalises_heads() -> None:
    assert [_config(model_type=name).qk_norm for name in ("llama", "mistral", "qwen2", "qwen3")] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": 32}, 32),
        ({"sliding_window": None}, None),
        ({"sliding_window": 32, "use_sliding_window": False}, None),
        ({"sliding_window": 32, "use_sliding_window": True}, 32),
        ({"sliding_window": 32, "layer_types": ["full_attention", "full_attention"]}, None),
        ({"sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]}, 32),
    ],
)
def test_the_sliding_window_is_read(changes: dict[str, Any], window: int | None) -> None:
    assert _config(**changes).sliding_window == window


@pytest.mark.parametrize("name", ["silu", "swish", "gelu", "gelu_pytorch_tanh", "relu"])
def test_known_activations_are_taken(name: str) -> None:
    assert _config(hidden_act=name).hidden_act == name


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="hidden_act 'quick_gelu' is not known"):
        _config(hidden_act="quick_gelu")
