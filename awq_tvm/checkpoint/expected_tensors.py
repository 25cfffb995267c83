"""Which tensors a config promises, and the check that the weights keep the promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awq_tvm.errors import CheckpointError

_MAX_LISTED = 400


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return name -> shape of every weight and bias, or None for a model_type without a table here.

    Args:
        config: as `config.normalise_config` returns it.
    """
    model_type = config["model_type"]
    if model_type not in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text"):
        return None
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    layer = _decoder_layer(config)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _decoder_layer(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if config["model_type"] == "gemma3_text":
        shapes |= {f"{name}_feedforward_layernorm.weight": (hidden,) for name in ("pre", "post")}
    if config["model_type"] in ("qwen3", "gemma3_text"):
        shapes |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    for name, (rows, _) in linears.items():
        if _has_bias(config, name):
            shapes[f"{name}.bias"] = (rows,)
    return shapes


def _has_bias(config: Mapping[str, Any], linear: str) -> bool:
    if config["model_type"] == "qwen2":  # fixed in the architecture, no key for it
        return linear in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return bool(config.get("attention_bias" if linear.startswith("self_attn.") else "mlp_bias", False))


def check_weights(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare what a checkpoint holds with what its config promises; silent for a model_type without a table.

    Args:
        config: as `config.normalise_config` returns it.
        shapes: name -> shape of what is there; a quantized linear counts as "<name>.weight" [N, K].
        where: named in the error.

    Raises:
        CheckpointError: listing every missing, extra and misshapen tensor at once.
    """
    expected = expected_tensors(config)
    if expected is None:
        return
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in shapes]
    problems += [f"extra: {name} {list(shape)}" for name, shape in shapes.items() if name not in expected]
    problems += [
        f"wrong shape: {name} is {list(shapes[name])}, config.json makes it {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if not problems:
        return
    listed = problems[:_MAX_LISTED]
    if len(problems) > _MAX_LISTED:
        listed.append(f"... and {len(problems) - _MAX_LISTED} more")
    raise CheckpointError(
        f"{len(problems)} of the weights do not fit config.json",
        where=where,
        why="\n    " + "\n    ".join(listed),
        fix="get config.json and the weights from the same revision of the model",
    )
