"""Where each family of models keeps its blocks, and how its checkpoints spell what transformers calls otherwise.

What AWQ must know of a block is not here: `trace` finds it by running one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from awq_tvm.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Family:
    """Paths of a causal language model in transformers, and what its checkpoints have otherwise.

    Attributes:
        base: path of the module that maps token ids to hidden states.
        blocks: path of the list of blocks.
        spelling: parts of names, in transformers and on disk.
        transposed: last parts of the linears that are stored as [K, N].
    """

    base: str = "model"
    blocks: str = "model.layers"
    spelling: tuple[tuple[str, str], ...] = ()
    transposed: tuple[str, ...] = ()


_LLAMA = Family()
_GPT = Family("transformer", "transformer.h")

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": _LLAMA,
    "opt": Family("model", "model.decoder.layers"),
    "falcon": _GPT,
    "mpt": Family("transformer", "transformer.blocks"),
    "bloom": _GPT,
    "gpt_neox": Family("gpt_neox", "gpt_neox.layers", (("lm_head.", "embed_out."),)),
    "gpt2": Family("transformer", "transformer.h", transposed=("c_attn", "c_proj", "c_fc")),
    "gpt_bigcode": _GPT,
    "mixtral": Family(
        spelling=(
            (".mlp.", ".block_sparse_moe."),
            (".gate_proj.", ".w1."),
            (".down_proj.", ".w2."),
            (".up_proj.", ".w3."),
        )
    ),
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _LLAMA,
    "deepseek_v2": _LLAMA,
}


@dataclass(frozen=True, slots=True)
class Seeing:
    """A model that sees, and where its files have the language model in it.

    Attributes:
        languages: model types that the language model may have, and the families that compute the same on text.
        layouts: what names of the language model's base and of its head begin with on disk; the first layout
            that finds an embedding is meant.
    """

    languages: Mapping[str, str]
    layouts: tuple[tuple[str, str], ...]


# As transformers 5 names its modules; then as it writes them to disk, and wrote them before.
_NESTED = ("model.language_model.", "lm_head.")
_OUTSIDE = ("language_model.model.", "language_model.lm_head.")
_FLAT = ("model.", "lm_head.")

SEEING: Mapping[str, Seeing] = {
    "llava": Seeing({name: name for name in ("llama", "mistral", "qwen2")}, (_NESTED, _OUTSIDE)),
    "qwen2_vl": Seeing({"qwen2_vl_text": "qwen2"}, (_NESTED, _FLAT)),
    "gemma3": Seeing({"gemma3_text": "gemma3_text"}, (_NESTED, _OUTSIDE)),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Look the model's family up.

    Args:
        config: config.json of a language model.

    Returns:
        Its family.

    Raises:
        UnsupportedError: a family that is not known.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedError(
            f"Models of type {model_type!r} cannot be quantized yet",
            where="config.json: model_type",
            why=f"known are {', '.join(sorted({*FAMILIES, *SEEING}))}",
            fix="see docs/adding-a-model.md for how a family is added",
        )
    return FAMILIES[model_type]
