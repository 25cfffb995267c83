"""GGUF files as Hugging Face checkpoints: names, shapes and row order of transformers, values in float32."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import Checkpoint, TensorInfo
from awq_tvm.checkpoint.expected_tensors import check_weights
from awq_tvm.checkpoint.gguf_config import ROPE_FACTORS, synthesise_config
from awq_tvm.checkpoint.gguf_gemma3 import NORM_OFFSET
from awq_tvm.checkpoint.gguf_header import GgufHeader, GgufTensor, parse_header
from awq_tvm.checkpoint.gguf_tokenizer import synthesise_side_files
from awq_tvm.checkpoint.safetensors_file import map_file
from awq_tvm.errors import CheckpointError, UnsupportedError

_READ_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BLOCK = re.compile(r"blk\.(?P<index>0|[1-9][0-9]*)\.(?P<name>[a-z_]+)\.(?P<kind>weight|bias)", re.ASCII)
_HUGGING_FACE_LAYER = re.compile(r"model\.layers\.(?P<index>0|[1-9][0-9]*)\.(?P<inner>[a-z_.]+)", re.ASCII)
_PLAIN = re.compile(r"(?P<name>[a-z_]+)\.(?P<kind>weight|bias)", re.ASCII)


def hugging_face_name(name: str, architecture: str = "llama") -> str | None:
    """Return the transformers name of a GGUF tensor, or None if it has none.

    Args:
        name: in the file.
        architecture: the file's general.architecture.
    """
    if match := _BLOCK.fullmatch(name):
        inner = (_GEMMA3_LAYER if architecture == "gemma3" else _LAYER).get(match["name"])
        return inner and f"model.layers.{match['index']}.{inner}.{match['kind']}"
    if match := _PLAIN.fullmatch(name):
        outer = _TOP.get(match["name"])
        return outer and f"{outer}.{match['kind']}"
    return None


def gguf_name(name: str) -> str | None:
    """Undo `hugging_face_name` for Llama-like models; None for a tensor that GGUF has no name for."""
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    for theirs, ours in _TOP.items():
        if module == ours:
            return f"{theirs}.{kind}"
    match = _HUGGING_FACE_LAYER.fullmatch(module)
    inner = next((theirs for theirs, ours in _LAYER.items() if match and ours == match["inner"]), None)
    return match and inner and f"blk.{match['index']}.{inner}.{kind}"


def permuted_rows(rows: int, heads: int) -> NDArray[np.int64]:
    """Return the order that llama.cpp gives the rows of q_proj and k_proj; undone by `unpermute_heads`."""
    return np.ascontiguousarray(np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2)).reshape(-1)


def unpermute_heads(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's reordering of q_proj and k_proj rows.

    Within a head, llama.cpp pairs channels (2i, 2i + 1) where transformers pairs (i, i + head_dim / 2).

    Args:
        rows: [heads * head_dim, ...].
        heads: number of heads in rows.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies and how to make float32 of it."""

    ggml_type: Any
    shape: tuple[int, ...]
    begin: int
    byte_shape: tuple[int, ...]
    unpermute: int | None = None
    minus: float = 0.0


def open_gguf(path: Path, source: str) -> Checkpoint:
    """Open a .gguf file of a Llama, Mistral, Qwen2, Qwen3 or Gemma 3 model.

    Args:
        path: the file.
        source: what the user typed.

    Raises:
        CheckpointError: if the file is damaged, or its tensors do not fit its metadata.
        UnsupportedError: for another architecture, tensor type, or tokenizer.
    """
    data = map_file(path)
    header = parse_header(data, path)
    stored = {name: _locate(name, tensor, header, len(data), path) for name, tensor in header.tensors.items()}
    _refuse_overlap(stored, path)
    factors = stored.get(ROPE_FACTORS)
    config = synthesise_config(
        header.metadata,
        {name: tensor.shape for name, tensor in header.tensors.items()},
        None if factors is None else _dequantize(data, factors),
        str(path),
    )
    architecture = header.metadata["general.architecture"]
    heads = _permuted_heads(architecture, config)
    by_name: dict[str, _Stored] = {}
    for gguf_name, tensor in stored.items():
        name = hugging_face_name(gguf_name, architecture)
        if name is not None:
            by_name[name] = _with_heads(tensor, gguf_name, heads)
            if architecture == "gemma3" and name.endswith("norm.weight"):
                by_name[name] = replace(by_name[name], minus=NORM_OFFSET)
        elif gguf_name != ROPE_FACTORS:
            by_name[gguf_name] = tensor  # the check below lists it as extra, under the name it has
    check_weights(config, {name: tensor.shape for name, tensor in by_name.items()}, str(path))
    tensors = {
        name: TensorInfo("float32", tensor.shape, tensor.ggml_type.name, math.prod(tensor.byte_shape))
        for name, tensor in by_name.items()
    }
    return Checkpoint(
        source=source,
        path=path,
        format="gguf",
        config=config,
        tensors=tensors,
        load_dense=lambda name: _dequantize(data, by_name[name]),
        load_side_files=lambda: synthesise_side_files(header.metadata, config, str(path)),
    )


def _locate(name: str, tensor: GgufTensor, header: GgufHeader, size: int, path: Path) -> _Stored:
    """Prove that a tensor lies inside the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # slow to import

    where = f"{path}, tensor {name!r}"
    known = {kind.value: kind for kind in GGMLQuantizationType}
    kind = known.get(tensor.type_id)
    if kind is None or kind.name not in _READ_TYPES:
        raise UnsupportedError(
            f"a tensor of type {kind.name if kind else tensor.type_id}",
            where=where,
            why=f"types read: {', '.join(_READ_TYPES)}",
            fix="take a GGUF of another type, best F16 or Q8_0",
        )
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if tensor.shape[-1] % block:
        raise CheckpointError(
            "a row is not a whole number of blocks",
            where=where,
            why=f"{tensor.shape[-1]} values, {kind.name} has {block} a block",
        )
    byte_shape = (*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes)
    nbytes = 1
    for length in byte_shape:  # Python integers do not wrap
        nbytes *= length
    begin = header.data_start + tensor.offset
    if begin + nbytes > size:
        raise CheckpointError(
            "the data lies outside the file (truncated?)",
            where=where,
            why=f"bytes {begin} to {begin + nbytes} of {size}",
            fix="get an undamaged copy of this file",
        )
    return _Stored(kind, tensor.shape, begin, byte_shape)


def _refuse_overlap(stored: Mapping[str, _Stored], path: Path) -> None:
    end, previous = 0, ""
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].begin):
        if tensor.begin < end:
            raise CheckpointError(
                "tensors overlap",
                where=f"{path}, tensor {name!r}",
                why=f"begins at {tensor.begin}, {previous!r} ends at {end}",
                fix="get an undamaged copy of this file",
            )
        end, previous = tensor.begin + math.prod(tensor.byte_shape), name


def _dequantize(data: Any, tensor: _Stored) -> NDArray[np.float32]:
    """Return one tensor as float32."""
    from gguf.quants import dequantize

    count = math.prod(tensor.byte_shape)
    raw = np.frombuffer(data, np.uint8, count, tensor.begin) if count else np.empty(0, np.uint8)
    with np.errstate(all="ignore"):  # NaN and Inf are found, and named, by Checkpoint.read
        values = np.asarray(dequantize(raw.reshape(tensor.byte_shape), tensor.ggml_type), np.float32)
        if tensor.minus:
            values = values - np.float32(tensor.minus)
    values = values.reshape(tensor.shape)
    return values if tensor.unpermute is None else unpermute_heads(values, tensor.unpermute)


def _permuted_heads(architecture: str, config: Mapping[str, Any]) -> dict[str, int]:
    """Return which tensors of a layer llama.cpp has permuted, and their number of heads."""
    if architecture != "llama":
        return {}
    return {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}


def _with_heads(tensor: _Stored, gguf_name: str, heads: Mapping[str, int]) -> _Stored:
    match = _BLOCK.fullmatch(gguf_name)
    count = heads.get(match["name"]) if match else None
    return tensor if count is None else replace(tensor, unpermute=count)
