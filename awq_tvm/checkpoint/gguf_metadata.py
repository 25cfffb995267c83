"""The metadata of a GGUF file, from config.json and the tokenizer: what llama.cpp needs to run the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from awq_tvm.checkpoint.gguf_tokenizer import pre_tokenizer_name
from awq_tvm.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type

_SENTENCEPIECE = "sentencepiece"
_SPACE = "▁"
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def add_architecture(writer: GGUFWriter, config: Mapping[str, Any], where: str) -> None:
    """Write the numbers of the architecture.

    Args:
        writer: of an architecture in `ARCHITECTURES`.
        config: as `Checkpoint.config`.
        where: named in errors.

    Raises:
        UnsupportedError: for a RoPE scaling that GGUF cannot express.
    """
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_rope_scaling(writer, config.get("rope_scaling"), where)


def _context_length(config: Mapping[str, Any]) -> int:
    """Return the positions for which the file is right: these architectures have no window in llama.cpp."""
    length: int = config["max_position_embeddings"]
    window: int | None = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return length if window is None else min(length, window)


def _add_rope_scaling(writer: GGUFWriter, scaling: Mapping[str, Any] | None, where: str) -> None:
    from gguf import RopeScalingType

    if scaling is None or scaling["rope_type"] == "llama3":  # the latter is a tensor: rope_freqs.weight
        return
    known = {
        "linear": {"factor"},
        "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
    }
    extra = scaling.keys() - known.get(scaling["rope_type"], set()) - {"rope_type"}
    if scaling["rope_type"] not in known or extra:
        raise UnsupportedError(
            f"RoPE scaling of type {scaling['rope_type']!r} in a GGUF file",
            where=where,
            why=f"not written: {', '.join(sorted(extra))}" if extra else "written: linear, yarn, llama3",
        )
    writer.add_rope_scaling_type(RopeScalingType(scaling["rope_type"]))
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        prefix = f"{writer.arch}.rope.scaling."
        for key in ("beta_fast", "beta_slow"):
            if key in scaling:
                writer.add_float32(f"{prefix}yarn_{key}", float(scaling[key]))


def add_tokenizer(
    writer: GGUFWriter, files: Mapping[str, bytes], config: Mapping[str, Any], where: str
) -> None:
    """Write the tokenizer, byte-level BPE or BPE with byte fallback (SentencePiece), and the chat template.

    Args:
        writer: the file.
        files: as `Checkpoint.side_files`.
        config: as `Checkpoint.config`.
        where: named in errors.

    Raises:
        CheckpointError: if tokenizer.json is missing, cannot be read, or has more tokens than the embedding.
        UnsupportedError: for another kind of tokenizer, or one that cuts text as none that llama.cpp knows.
    """
    from tokenizers import Tokenizer

    raw = files.get("tokenizer.json")
    if raw is None:
        raise CheckpointError(
            "there is no tokenizer to put into the GGUF file", where=where, why="tokenizer.json is missing"
        )
    try:
        tokenizer = Tokenizer.from_str(raw.decode())
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError("tokenizer.json cannot be read", where=where, why=str(error)) from error
    content = json.loads(raw)
    model = content["model"]
    name = _kind(tokenizer, model)
    if name is None:
        raise UnsupportedError(
            "a tokenizer that is not written to GGUF files",
            where=f"{where}, tokenizer.json",
            why="written: byte-level BPE that cuts text as GPT-2, SmolLM, Llama 3 or Qwen 2, and SentencePiece BPE",
            fix="convert the model with llama.cpp's convert_hf_to_gguf.py",
        )
    tokens, types = _vocabulary(tokenizer, content["added_tokens"], config["vocab_size"], where)
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if name == _SENTENCEPIECE:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_first_token(tokenizer).startswith(_SPACE))
        types = [
            _sentencepiece_type(*item, model.get("unk_token")) for item in zip(tokens, types, strict=True)
        ]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_tokens(writer, tokenizer, files, config)


def _kind(tokenizer: Any, model: Mapping[str, Any]) -> str | None:
    """Return the name of a byte-level tokenizer's rules, `_SENTENCEPIECE`, or None."""
    if model["type"] != "BPE":
        return None
    if not model.get("byte_fallback"):
        return pre_tokenizer_name(tokenizer, bool(model.get("ignore_merges")))
    # It must do nothing to text but mark its spaces.
    marked = "".join(tokenizer.encode("a  b1,", add_special_tokens=False).tokens).removeprefix(_SPACE)
    return _SENTENCEPIECE if marked == f"a{_SPACE}{_SPACE}b1," else None


def _first_token(tokenizer: Any) -> str:
    return str(tokenizer.encode("a", add_special_tokens=False).tokens[0])


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Return a score for each token that makes llama.cpp merge in the order of the list."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _sentencepiece_type(token: str, kind: int, unknown: str | None) -> int:
    if token == unknown:
        return _UNKNOWN
    return _BYTE if _BYTE_TOKEN.fullmatch(token) and kind == _NORMAL else kind


def _vocabulary(
    tokenizer: Any, added: list[dict[str, Any]], size: int, where: str
) -> tuple[list[str], list[int]]:
    tokens, types = [f"[PAD{index}]" for index in range(size)], [_UNUSED] * size
    kinds = {item["id"]: _CONTROL if item["special"] else _USER_DEFINED for item in added}
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index >= size:
            raise CheckpointError(
                "the tokenizer has more tokens than the embedding has rows",
                where=where,
                why=f"token {index}, vocab_size {size}",
            )
        tokens[index], types[index] = token, kinds.get(index, _NORMAL)
    return tokens, types


def _add_special_tokens(
    writer: GGUFWriter, tokenizer: Any, files: Mapping[str, bytes], config: Mapping[str, Any]
) -> None:
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    generation = json.loads(files.get("generation_config.json", b"{}"))
    found = {}
    for role in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        index = tokenizer.token_to_id(token) if isinstance(token, str) else config.get(f"{role}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int):
            found[role] = index
            getattr(writer, f"add_{role}_token_id")(index)
    ends = generation.get("eos_token_id")
    others = [
        end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, found.get("eos"))
    ]
    if others:
        writer.add_eot_token_id(others[0])
    writer.add_add_bos_token("bos" in found and tokenizer.encode("a").ids[:1] == [found["bos"]])
    template = files.get("chat_template.jinja", b"").decode() or settings.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)
