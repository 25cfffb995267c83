"""What GGUF keeps otherwise for Gemma 3: windows by layer, two RoPE bases, norms with their 1 added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from awq_tvm.checkpoint.gguf_values import shortest
from awq_tvm.errors import CheckpointError

# llama.cpp stores 1 + weight, which is what it multiplies by; transformers stores the weight.
NORM_OFFSET = 1.0

_CAP = "gemma3.final_logit_softcapping"
_PATTERN = 6  # of so many layers, the last one sees everything
_GLOBAL_THETA, _LOCAL_THETA = 10000.0, 10000.0  # what llama.cpp assumes when the file is silent
_LAYERS_OF_27B = 62  # known to llama.cpp by its depth alone: its queries are scaled otherwise


def gemma3_keys(metadata: Mapping[str, Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the keys of config.json that only Gemma 3 has.

    Args:
        metadata: the file's key-value section.
        config: the keys common to all architectures, with head_dim; not checked yet.
        where: named in errors.

    Raises:
        CheckpointError: if the window or its pattern makes no sense.
    """
    window = metadata.get("gemma3.attention.sliding_window") or None
    cap = metadata.get(_CAP) or None
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window,
        "layer_types": _layer_types(metadata, config.get("num_hidden_layers"), window is not None, where),
        "rope_theta": config.get("rope_theta", _GLOBAL_THETA),
        "rope_local_base_freq": shortest(_number(metadata, "gemma3.rope.freq_base_swa", _LOCAL_THETA, where)),
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None if cap is None else _number(metadata, _CAP, 0.0, where),
    }


def _number(metadata: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointError(f"{key} is not a number above 0", where=where, why=f"found {value!r:.80}")
    return float(value)


def _layer_types(metadata: Mapping[str, Any], layers: object, windowed: bool, where: str) -> list[str] | None:
    """Return what each layer sees; None where the number of layers is not one, which is refused later."""
    if type(layers) is not int or not 0 < layers <= 1 << 11:
        return None
    key = "gemma3.attention.sliding_window_pattern"
    pattern = metadata.get(key, _PATTERN)
    if isinstance(pattern, list):  # of true where a layer has the window
        if len(pattern) != layers or not all(isinstance(item, bool) for item in pattern):
            raise CheckpointError(
                f"{key} does not say of each layer whether it has a window",
                where=where,
                why=f"{len(pattern)} items for {layers} layers",
            )
        local = pattern
    elif type(pattern) is int and pattern >= 0:
        local = [pattern == 0 or index % pattern < pattern - 1 for index in range(layers)]
    else:
        raise CheckpointError(
            f"{key} is neither a number of layers nor a list", where=where, why=f"found {pattern!r:.80}"
        )
    return ["sliding_attention" if windowed and one else "full_attention" for one in local]


def _query_scalar(config: Mapping[str, Any]) -> object:
    """Return what queries are divided by the square root of."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if (
        config.get("num_hidden_layers") == _LAYERS_OF_27B
        and isinstance(hidden, int)
        and isinstance(heads, int)
    ):
        return hidden // max(heads, 1)
    return config.get("head_dim")
