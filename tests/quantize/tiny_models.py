"""Tiny random models and tokenizers, made by transformers and tokenizers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 128

# Names that transformers maps to a family's own, such as n_embd; then what only some families have.
_SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DECODER: Mapping[str, Any] = {
    **_SIZES,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
_GPT = {**_SIZES, "n_inner": 128, "n_positions": 256, "tie_word_embeddings": True}
_EXPERTS = {**_DECODER, "moe_intermediate_size": 64, "num_experts_per_tok": 2}
_DEEPSEEK = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
_FALCON = {**_SIZES, "model_type": "falcon"}

# The families that can be compiled too: seven linears a block.
FAMILIES: Mapping[str, Mapping[str, Any]] = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _DECODER)

# Every form of a block that can be quantized.
ALL_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    **FAMILIES,
    "gemma2": {**_DECODER, "query_pre_attn_scalar": 16, "sliding_window": 16},
    "gemma3_text": {
        **_DECODER,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {name: value for name, value in _DECODER.items() if name != "head_dim"},
    "opt": {**_SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 256},
    "gpt_neox": {**_SIZES, "intermediate_size": 128, "max_position_embeddings": 256},
    # One norm for attention and MLP; one head of keys and values.
    "falcon-7b": _FALCON,
    # A norm for each; grouped keys and values.
    "falcon-40b": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    # One after the other, with biases and ALiBi.
    "falcon-rw": {**_FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    "bloom": {**_SIZES, "n_layer": 2, "n_head": 4},
    "mpt": {**_SIZES, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "gpt2": _GPT,
    # One head of keys and values, or one for each head of queries.
    "gpt_bigcode": _GPT,
    "gpt_bigcode-mha": {**_GPT, "model_type": "gpt_bigcode", "multi_query": False},
    "mixtral": {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    # An MLP in the first block, experts and a shared one behind a gate in the second.
    "qwen2_moe": {
        **_EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 96,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "norm_topk_prob": True},
    # Compressed queries, keys and values; an MLP, then experts and a shared one without a gate.
    "deepseek_v2": {**_DEEPSEEK, "q_lora_rank": 32},
    # Its small sister: queries are not compressed, values are wider than keys, experts are chosen by groups.
    "deepseek_v2-lite": {
        **_DEEPSEEK,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "v_head_dim": 32,
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.0,
    },
}


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A random model whose norms, biases and weights are far enough from their defaults to show mistakes."""
    settings = {"model_type": family, **ALL_FAMILIES[family], **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    randomize(model)
    return model.eval()


def randomize(model: PreTrainedModel) -> None:
    """Move all parameters far from their defaults; every one is a float16."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and not name.endswith("bias"):
                # A norm, with a few loud channels, as trained models have.
                loud = 1.0 + 9.0 * (torch.rand(parameter.shape, generator=generator) > 0.9)
                parameter.copy_(((1.0 + 0.2 * noise) * loud).half().float())
            else:
                parameter.copy_((noise * (0.1 if name.endswith("bias") else 0.15)).half().float())


def save_tiny_model(folder: Path, family: str = "llama", **changes: Any) -> PreTrainedModel:
    """Write a model folder, with a tokenizer in which every ASCII character is a token."""
    model = tiny_model(family, **changes)
    model.save_pretrained(folder)
    character_tokenizer().save(str(folder / "tokenizer.json"))
    return model


def character_tokenizer(size: int = VOCABULARY) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({chr(index): index for index in range(size)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def write_text(path: Path, characters: int = 4000) -> Path:
    generator = torch.Generator().manual_seed(3)
    letters = torch.randint(97, 123, (characters,), generator=generator).tolist()
    path.write_text("".join(map(chr, letters)), encoding="utf-8")
    return path
