"""config.json: parsed within bounds, checked, and brought to one spelling.

The result keeps every key of the file and guarantees, for the model types in `FAMILIES`, that the keys in
`_COUNTS` and those of the family's defaults exist with sane values, and that RoPE is spelt `rope_theta` +
`rope_scaling` (None or a dict with `rope_type`). `rope_parameters` stays only where it differs by layer type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from awq_tvm.checkpoint.json_file import parse_json_object
from awq_tvm.errors import CheckpointError

MAX_CONFIG_BYTES = 4_000_000

# Largest value each count may have: far above any real model, far below what could exhaust memory.
_COUNTS = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 11,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 23,
    "max_position_embeddings": 1 << 27,
}

# What transformers assumes when config.json is silent, per model_type.
_COMMON: dict[str, Any] = {
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_COMMON, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
    "mistral": {**_COMMON, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {**_COMMON, "max_position_embeddings": 32768, "use_sliding_window": False},
    "qwen3": {
        **_COMMON,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "attention_bias": False,
        "head_dim": 128,
    },
    "gemma3_text": {
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "attention_bias": False,
        "sliding_window": 4096,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
}
# Their layers have RoPE of two kinds; where rope_parameters says so, no other key does.
_ROPE_BY_LAYER_TYPE = ("gemma3_text",)

# rope_type -> the numbers it needs. Unknown types are refused: a wrong RoPE gives plausible nonsense.
_ROPE_TYPES: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
}

# Models that see. Their rotary embedding is that of their text_config, or has three directions: its spelling stays as
# it is, which transformers reads and nothing here.
_OTHER_ROPE = ("gemma3", "llava", "qwen2_vl")


def parse_config(raw: bytes, where: str) -> dict[str, Any]:
    """Parse, check and normalise the bytes of a config.json.

    Raises:
        CheckpointError: if it cannot be parsed, or `normalise_config` refuses it.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise CheckpointError(
            "config.json is too large",
            where=where,
            why=f"{len(raw)} bytes; at most {MAX_CONFIG_BYTES} are parsed",
        )
    return normalise_config(parse_json_object(raw, where), where)


def normalise_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a checked copy with the family's defaults filled in and RoPE in one spelling.

    A model_type outside `FAMILIES` is no error here: only the keys it has are checked, and none are filled in.

    Raises:
        CheckpointError: listing every field that cannot be true.
    """
    result = {key: value for key, value in config.items() if key != "rope_parameters"}
    problems: list[str] = []
    model_type = result.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        problems.append(f"model_type is {model_type!r}; it must name the architecture")
        model_type = ""
    for key, value in FAMILIES.get(model_type, {}).items():
        if key.startswith("rope_") and _differs_by_layer_type(config.get("rope_parameters")):
            continue
        # A null counts as silence, but for sliding_window it says "none".
        if result.get(key) is None and not (key == "sliding_window" and key in result):
            result[key] = value
    _unify_rope(result, config.get("rope_parameters"), problems)
    problems += _check_counts(result, required=model_type in FAMILIES)
    problems += _check_rope(result)
    problems += _check_scalars(result)
    if problems:
        raise CheckpointError(
            "config.json does not describe a model that can exist",
            where=where,
            why="; ".join(problems),
            fix="get an undamaged config.json for this checkpoint",
        )
    return result


def _unify_rope(result: dict[str, Any], parameters: object, problems: list[str]) -> None:
    """Bring `rope_parameters` (transformers 5) to the older `rope_theta` + `rope_scaling`."""
    if parameters is not None and not isinstance(parameters, dict):
        problems.append(f"rope_parameters is {parameters!r:.80}; it must be an object")
        return
    scaling = result.get("rope_scaling")
    if result.get("model_type") in _OTHER_ROPE:
        if parameters is not None:
            result["rope_parameters"] = parameters
        return
    if scaling is not None and not isinstance(scaling, dict):
        problems.append(f"rope_scaling is {scaling!r:.80}; it must be an object or null")
        result["rope_scaling"] = None
        return
    merged = dict(parameters or scaling or {})
    if _differs_by_layer_type(merged):  # one set per layer type, as Gemma 3 has
        if result.get("model_type") in FAMILIES and result.get("model_type") not in _ROPE_BY_LAYER_TYPE:
            problems.append("rope_parameters differ by layer type, which this architecture does not have")
        result["rope_parameters"], result["rope_scaling"] = merged, None
        return
    if "type" in merged:  # the key's name before transformers 4.43
        merged.setdefault("rope_type", merged["type"])
        del merged["type"]
    theta = merged.pop("rope_theta", None)
    if theta is not None:
        result["rope_theta"] = theta
    rope_type = merged.get("rope_type", "default")
    if rope_type == "default" and not merged.keys() - {"rope_type"}:
        result["rope_scaling"] = None
        return
    merged["rope_type"] = rope_type
    if rope_type == "yarn" and "max_position_embeddings" in result:
        merged.setdefault("original_max_position_embeddings", result["max_position_embeddings"])
    result["rope_scaling"] = merged


def _differs_by_layer_type(parameters: object) -> bool:
    return isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values())


def _check_counts(config: dict[str, Any], *, required: bool) -> list[str]:
    problems = []
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    # Of another family's silence nothing is known: Gemma's head_dim is 256, whatever the hidden size.
    if required and config.get("num_key_value_heads") is None and heads is not None:
        config["num_key_value_heads"] = heads
    if required and config.get("head_dim") is None and _is_count(heads) and _is_count(hidden):
        if hidden % heads:
            problems.append(
                f"num_attention_heads {heads} does not divide hidden_size {hidden}, and there is no head_dim"
            )
        config["head_dim"] = hidden // heads
    for key, limit in _COUNTS.items():
        value = config.get(key)
        if value is None:
            if required:
                problems.append(f"{key} is missing")
        elif not _is_count(value) or value > limit:
            problems.append(f"{key} is {value!r:.80}; it must be an integer from 1 to {limit}")
    if problems:
        return problems
    kv_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
    if heads is not None and kv_heads is not None and heads % kv_heads:
        problems.append(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if head_dim is not None and head_dim % 2:
        problems.append(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
    return problems


def _check_rope(config: dict[str, Any]) -> list[str]:
    problems = []
    theta = config.get("rope_theta")
    if theta is not None and not _is_positive(theta):
        problems.append(f"rope_theta is {theta!r:.80}; it must be a finite number > 0")
    scaling = config.get("rope_scaling")
    if scaling is None or config.get("model_type") in _OTHER_ROPE:
        return problems
    rope_type = scaling["rope_type"]
    if not isinstance(rope_type, str) or rope_type not in _ROPE_TYPES:
        return [*problems, f"rope type {rope_type!r:.80} is unknown; known: {', '.join(_ROPE_TYPES)}"]
    for key in _ROPE_TYPES[rope_type]:
        value = scaling.get(key)
        values = value if key in ("short_factor", "long_factor") and isinstance(value, list) else [value]
        if not values or not all(map(_is_positive, values)):
            problems.append(f"rope_scaling.{key} is {value!r:.80}; {rope_type} needs finite numbers > 0")
    if rope_type == "llama3" and not problems and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        problems.append("rope_scaling.low_freq_factor must be below high_freq_factor")
    return problems


def _check_scalars(config: dict[str, Any]) -> list[str]:
    problems = []
    epsilon = config.get("rms_norm_eps")
    if epsilon is not None and not (_is_positive(epsilon) and epsilon < 1):
        problems.append(f"rms_norm_eps is {epsilon!r:.80}; it must be a number between 0 and 1")
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"):
        if not isinstance(config.get(key, False), bool):
            problems.append(f"{key} is {config[key]!r:.80}; it must be true or false")
    window = config.get("sliding_window")
    # transformers writes 0 for a window that is not used.
    unused = config.get("use_sliding_window") is False and window == 0
    if window is not None and not unused and not _is_count(window):
        problems.append(f"sliding_window is {window!r:.80}; it must be null or an integer > 0")
    return problems


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _is_positive(value: object) -> bool:
    """True for a finite number > 0; an integer too large for a float counts as infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value)) and value > 0
    except OverflowError:
        return False
