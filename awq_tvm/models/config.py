"""What the model definitions need of a Hugging Face config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from awq_tvm.errors import UnsupportedError
from awq_tvm.models.rope import RopeConfig


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only model's sizes, in config.json's words.

    Args:
        attention_bias: biases on the q, k and v projections (``attention_output_bias``: on o).
        qk_norm: RMSNorm over each head of q and k before the rotary embedding (Qwen3).
        max_position_embeddings: longest sequence the model was made for, in tokens.
        sliding_window: tokens a token attends to, or None for all before it.
        all_windowed: whether that is so in every layer.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig
    max_position_embeddings: int
    sliding_window: int | None
    all_windowed: bool

    @staticmethod
    def from_hugging_face(config: dict[str, Any]) -> ModelConfig:
        """Read a checked config.json (see ``awq_tvm.checkpoint``)."""
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        model_type = str(config["model_type"])
        hidden_act = str(config.get("hidden_act", "silu"))
        if hidden_act not in ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu"):
            raise UnsupportedError(f"hidden_act {hidden_act!r} is not known", where="config.json")
        always_qkv_bias = model_type == "qwen2"
        attention_bias = bool(config.get("attention_bias", False))
        return ModelConfig(
            model_type=model_type,
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            vocab_size=int(config["vocab_size"]),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            hidden_act=hidden_act,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=attention_bias or always_qkv_bias,
            attention_output_bias=attention_bias and not always_qkv_bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=model_type == "qwen3",
            rope=RopeConfig.from_hugging_face(config, head_dim),
            max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
            sliding_window=_sliding_window(config),
            all_windowed=_all_windowed(config),
        )


def _sliding_window(config: dict[str, Any]) -> int | None:
    """The attention window in tokens, or None where every layer attends to everything."""
    if config.get("use_sliding_window") is False or not config.get("sliding_window"):
        return None
    if "full_attention" in (layers := config.get("layer_types") or []) and "sliding_attention" not in layers:
        return None
    return int(config["sliding_window"])


def _all_windowed(config: dict[str, Any]) -> bool:
    """Whether a window is every layer's; of a family that may have others in between it must say so."""
    if layers := config.get("layer_types"):
        return all(layer == "sliding_attention" for layer in layers)
    return bool(config["model_type"] == "mistral")
