"""Tiny random checkpoints for the tests, built by other means than the code under test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from awq_tvm.checkpoint import QuantizedWeight, TensorInfo

VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 48, 32, 64, 2, 4, 2, 8
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# Two windows of 3 tokens; heads that are scaled as their size says, as all but one Gemma are.
GEMMA3 = {
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 3,
    "query_pre_attn_scalar": HEAD_DIM,
    "rope_theta": 50000.0,
    "rope_local_base_freq": 1000.0,
}


def tiny_config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    config = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    if family == "gemma3_text":
        del config["hidden_act"]
        config |= GEMMA3
    return config | changes


def tiny_linears(layer: int) -> dict[str, tuple[int, int]]:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {
        "self_attn.q_proj": (queries, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, queries),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


def all_linears() -> dict[str, tuple[int, int]]:
    return {name: shape for layer in range(LAYERS) for name, shape in tiny_linears(layer).items()}


def tiny_weights(config: dict[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    family = config["model_type"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        where = f"model.layers.{layer}"
        for name, shape in tiny_linears(layer).items():
            shapes[f"{name}.weight"] = shape
            is_attention = ".self_attn." in name
            biased = config.get("attention_bias" if is_attention else "mlp_bias", False)
            if biased or (family == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj"))):
                shapes[f"{name}.bias"] = shape[:1]
        shapes[f"{where}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{where}.post_attention_layernorm.weight"] = (HIDDEN,)
        if family == "gemma3_text":
            shapes[f"{where}.pre_feedforward_layernorm.weight"] = (HIDDEN,)
            shapes[f"{where}.post_feedforward_layernorm.weight"] = (HIDDEN,)
        if family in ("qwen3", "gemma3_text"):
            shapes[f"{where}.self_attn.q_norm.weight"] = (HEAD_DIM,)
            shapes[f"{where}.self_attn.k_norm.weight"] = (HEAD_DIM,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def save_folder(
    folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray], *, shards: int = 1
) -> Path:
    """Write config.json and the weights as one or several safetensors, by the reference library."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: value for at, (key, value) in enumerate(weights.items()) if at % shards == number}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file; header is an object or the raw bytes of one."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def random_weight(
    shape: tuple[int, int], bits: int, group_size: int, *, symmetric: bool = False, seed: int = 0
) -> QuantizedWeight:
    rng = np.random.default_rng(seed)
    rows, columns = shape
    groups = (rows, columns // group_size)
    zeros = rng.integers(0, 1 << bits, groups, dtype=np.uint8)
    return QuantizedWeight(
        q=rng.integers(0, 1 << bits, shape, dtype=np.uint8),
        scales=rng.uniform(0.001, 0.1, groups).astype(np.float16),
        zeros=np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros,
        bits=bits,
        group_size=group_size,
    )


def scattered_weight(shape: tuple[int, int], bits: int, group_size: int, **options: Any) -> QuantizedWeight:
    """The same with channels drawn into groups by chance."""
    weight = random_weight(shape, bits, group_size, **options)
    groups = np.random.default_rng(options.get("seed", 0)).permutation(shape[1]) // group_size
    return replace(weight, group_of=groups.astype(np.int32))


def infos_of(arrays: dict[str, np.ndarray]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(array.dtype.name, array.shape, "", array.nbytes) for name, array in arrays.items()
    }


def assert_same(left: QuantizedWeight, right: QuantizedWeight) -> None:
    np.testing.assert_array_equal(left.q, right.q)
    np.testing.assert_array_equal(left.zeros, right.zeros)
    np.testing.assert_array_equal(left.scales.view(np.uint16), right.scales.view(np.uint16))
    assert (left.bits, left.group_size) == (right.bits, right.group_size)
    assert (left.group_of is None) == (right.group_of is None)
    if left.group_of is not None:
        np.testing.assert_array_equal(left.group_of, right.group_of)


def gemv_arrays(weight: QuantizedWeight) -> dict[str, np.ndarray]:
    """What AutoAWQ's gemv stores, word by word; zero points for whole stretches of 1024 channels."""
    outputs, features = weight.q.shape
    groups = features // weight.group_size
    width = -(-groups // 8)
    if weight.group_size < 128:
        width = -(-width // (128 // weight.group_size)) * (128 // weight.group_size)
    qweight, qzeros = np.zeros((outputs, features // 8), np.uint32), np.zeros((outputs, width), np.uint32)
    for k in range(features):
        qweight[:, k // 8] |= weight.q[:, k].astype(np.uint32) << np.uint32(4 * (k % 8))
    for g in range(groups):
        qzeros[:, g // 8] |= weight.zeros[:, g].astype(np.uint32) << np.uint32(4 * (g % 8))
    scales = np.zeros((outputs, width * 8), np.float16)
    scales[:, :groups] = weight.scales
    return {"qweight": qweight.view(np.int32), "qzeros": qzeros.view(np.int32), "scales": scales}


def gptq_arrays(weight: QuantizedWeight, zero_point_offset: int) -> dict[str, np.ndarray]:
    """What AutoGPTQ stores, bit by bit."""
    bits, (outputs, features) = weight.bits, weight.q.shape
    groups = features // weight.group_size
    qweight = np.zeros((features * bits // 32, outputs), np.uint32)
    qzeros = np.zeros((groups, outputs * bits // 32), np.uint32)
    zeros = weight.zeros - np.uint8(zero_point_offset)
    for bit in range(bits):
        for k in range(features):
            word, place = divmod(k * bits + bit, 32)
            qweight[word] |= (weight.q[:, k].astype(np.uint32) >> np.uint32(bit) & 1) << np.uint32(place)
        for n in range(outputs):
            word, place = divmod(n * bits + bit, 32)
            qzeros[:, word] |= (zeros[n].astype(np.uint32) >> np.uint32(bit) & 1) << np.uint32(place)
    scales = np.ascontiguousarray(weight.scales.T)
    return {"qweight": qweight.view(np.int32), "qzeros": qzeros.view(np.int32), "scales": scales}


def permute_heads(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q_proj and k_proj."""
    half = rows.shape[0] // heads // 2
    order = [
        head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)
    ]
    return rows[order]


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA3_NAMES = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, arch: str = "llama") -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{(GEMMA3_NAMES if arch == 'gemma3' else GGUF_NAMES)[inner]}.{kind}"


# 48 tokens: <unk> <s> </s>, letters and a few merges, so that text can be encoded.
BPE_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    *"abcdefghijklmnopqrstuvwxyzĠ.,",
    "th",
    "the",
    "Ġthe",
    "in",
    "ing",
    "an",
]
BPE_TOKENS += [f"<extra_{i}>" for i in range(VOCAB - len(BPE_TOKENS))]
BPE_MERGES = ["t h", "th e", "Ġ the", "i n", "in g", "a n"]


def save_gguf(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    *,
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
    metadata: dict[str, Any] | None = None,
    tokens: list[str] | None = BPE_TOKENS,
    extra: dict[str, np.ndarray] | None = None,
    extra_raw: tuple[dict[str, np.ndarray], gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a GGUF as llama.cpp's converter would; `types` quantizes tensors, by Hugging Face name."""
    arch = config["model_type"].removesuffix("_text")
    path.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_key_length(config["head_dim"])
    if arch == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        kinds = [3 if token in ("<unk>", "<s>", "</s>") else 4 if "extra" in token else 1 for token in tokens]
        writer.add_token_types(kinds)
        writer.add_token_merges(BPE_MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    for key, value in (metadata or {}).items():
        if key in writer.kv_data[0]:
            del writer.kv_data[0][key]
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, array in weights.items():
        if arch == "llama" and ".q_proj." in name:
            array = permute_heads(array, config["num_attention_heads"])
        if arch == "llama" and ".k_proj." in name:
            array = permute_heads(array, config["num_key_value_heads"])
        if arch == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        kind = (types or {}).get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(gguf_name(name, arch), gguf.quants.quantize(array, kind), raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    for name, array in (extra_raw[0] if extra_raw else {}).items():
        writer.add_tensor(name, array, raw_dtype=extra_raw[1] if extra_raw else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
