"""config.json in Hugging Face terms, from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.config import normalise_config
from awq_tvm.checkpoint.gguf_gemma3 import gemma3_keys
from awq_tvm.checkpoint.gguf_values import shortest
from awq_tvm.errors import CheckpointError, UnsupportedError

ROPE_FACTORS = "rope_freqs.weight"

# general.architecture -> model_type, class. Mistral is stored as llama.
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}

_NUMBERS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}


def synthesise_config(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: NDArray[np.float32] | None,
    where: str,
) -> dict[str, Any]:
    """Return a checked config.

    Args:
        metadata: the file's key-value section.
        shapes: GGUF tensor name -> shape, for what the metadata does not say (tied head, biases, vocabulary).
        rope_factors: float32 [head_dim // 2], which Llama 3.1 files carry in place of metadata; or None.
        where: named in errors.

    Raises:
        CheckpointError: if the metadata cannot be true.
        UnsupportedError: for another architecture, mixtures of experts, layers of different shape, or an
            unknown RoPE scaling.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(
            "the metadata does not name its architecture", where=where, why="no general.architecture"
        )
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            f"a GGUF file of architecture {architecture!r:.80}",
            where=where,
            why=f"architectures read: {', '.join(_ARCHITECTURES)}",
            fix="give the Hugging Face folder of the model instead",
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise UnsupportedError(
            "a mixture of experts", where=where, why=f"{architecture}.expert_count is not 0"
        )
    model_type, class_name = _ARCHITECTURES[architecture]
    config: dict[str, Any] = {"architectures": [class_name], "model_type": model_type}
    for key, name in _NUMBERS.items():
        value = _one_value(metadata.get(f"{architecture}.{key}"), f"{architecture}.{key}", where)
        if value is not None:
            config[name] = shortest(value) if isinstance(value, float) else value
    config["head_dim"] = _head_dim(metadata, architecture, config)
    config["vocab_size"] = shapes.get("token_embd.weight", (metadata.get(f"{architecture}.vocab_size"),))[0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    if architecture != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in shapes
    if architecture == "gemma3":
        config |= gemma3_keys(metadata, config, where)
    else:
        config["hidden_act"] = "silu"
    config["rope_scaling"] = _rope_scaling(metadata, architecture, where)
    for name in ("bos", "eos", "padding"):
        config[f"{name.replace('padding', 'pad')}_token_id"] = metadata.get(f"tokenizer.ggml.{name}_token_id")
    config = normalise_config(config, where)
    if rope_factors is not None:
        config["rope_scaling"] = _llama3_scaling(rope_factors, config, where)
    return config


def _one_value(value: object, key: str, where: str) -> Any:
    """Return a scalar; a list of equal items counts as one."""
    if not isinstance(value, list):
        return value
    if not value or any(item != value[0] for item in value):
        raise UnsupportedError("layers of different shape", where=where, why=f"{key} is {value!r:.80}")
    return value[0]


def _head_dim(metadata: Mapping[str, Any], architecture: str, config: Mapping[str, Any]) -> object:
    """Return the head size, or None to let `normalise_config` divide hidden_size by the heads."""
    explicit = metadata.get(f"{architecture}.attention.key_length")
    rotary = metadata.get(f"{architecture}.rope.dimension_count")
    if explicit is not None or architecture == "llama":
        return rotary if explicit is None else explicit
    if architecture in (
        "qwen3",
        "gemma3",
    ):  # transformers' default must not stand in for what llama.cpp divides
        hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            return hidden // heads
    return None


def _rope_scaling(metadata: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any] | None:
    prefix = f"{architecture}.rope.scaling."
    kind = metadata.get(f"{prefix}type", "none")
    factor = metadata.get(f"{prefix}factor", metadata.get(f"{architecture}.rope.scale_linear"))
    if kind == "none" and factor is not None and f"{prefix}type" not in metadata:
        kind = "linear"  # files from before the type was written
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(
            f"RoPE scaling of type {kind!r:.80}",
            where=where,
            why="types read from GGUF: none, linear, yarn, and the factors of Llama 3.1",
            fix="give the Hugging Face folder of the model instead",
        )
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    optional = {
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    for key, name in optional.items():
        value = metadata.get(prefix + key)
        if value is not None:
            scaling[name] = shortest(value) if isinstance(value, float) else value
    return scaling


def llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return what each rotary frequency is divided by under rope_type "llama3": float64 [head_dim // 2].

    Source: transformers, modeling_rope_utils; llama.cpp stores exactly these numbers as rope_freqs.weight.
    """
    exponents = np.arange(0, config["head_dim"], 2, dtype=np.float64) / config["head_dim"]
    wavelength = 2 * math.pi * float(config["rope_theta"]) ** exponents
    rotations = scaling["original_max_position_embeddings"] / wavelength
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float64] = 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)
    return factors


def _llama3_scaling(
    factors: NDArray[np.float32], config: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    """Recover what made the factors: the parameters Meta uses are tried, and must reproduce every number."""
    if factors.shape != (config["head_dim"] // 2,) or not np.isfinite(factors).all() or (factors <= 0).any():
        raise CheckpointError(
            f"{ROPE_FACTORS} makes no sense",
            where=where,
            why=f"{list(factors.shape)} for head_dim {config['head_dim']}",
        )
    if (factors == 1).all():
        return None
    scaling = {
        "rope_type": "llama3",
        "factor": shortest(float(factors.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(llama3_factors(config, scaling), factors, rtol=1e-4):
        raise UnsupportedError(
            f"RoPE factors ({ROPE_FACTORS}) other than those of Llama 3.1",
            where=where,
            fix="give the Hugging Face folder of the model instead",
        )
    return scaling
