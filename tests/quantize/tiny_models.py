"""Tiny random models and tokenizers, made by transformers and tokenizers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 128

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A random model whose norms, biases and weights are far enough from their defaults to show mistakes."""
    config_class, model_class = FAMILIES[family]
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = model_class(config_class(**{**settings, **changes}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                # A few loud channels, as trained models have.
                loud = 1.0 + 9.0 * (torch.rand(parameter.shape, generator=generator) > 0.9)
                parameter.copy_(((1.0 + 0.2 * noise) * loud).half().float())
            else:
                parameter.copy_((noise * (0.1 if name.endswith("bias") else 0.15)).half().float())
    return model.eval()


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
