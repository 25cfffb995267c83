"""Write a GGUF file that llama.cpp runs, from any checkpoint of a Llama, Mistral, Qwen2 or Qwen3 model.

Where a quantized linear can be said exactly in the blocks of 32 that GGUF has, its own codes are stored;
otherwise its values are quantized again by the `gguf` package.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import Checkpoint, QuantizedWeight
from awq_tvm.checkpoint.gguf_config import ROPE_FACTORS, llama3_factors
from awq_tvm.checkpoint.gguf_file import gguf_name, permuted_rows
from awq_tvm.checkpoint.gguf_metadata import ARCHITECTURES, add_architecture, add_tokenizer
from awq_tvm.errors import CheckpointError, ResourceError, UnsupportedError, UsageError
from awq_tvm.output_folder import check_output

BLOCK = 32
# kind -> llama.cpp's general.file_type
KINDS = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7}


@dataclass(frozen=True)
class _Planned:
    """One tensor to write: its type and shape are known before it is read."""

    name: str
    kind: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]

    @property
    def byte_shape(self) -> tuple[int, ...]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind.upper()]]
        return (*self.shape[:-1], self.shape[-1] // block * size)


def write_gguf(out: Path, checkpoint: Checkpoint, *, kind: str) -> Path:
    """Write one .gguf file; it appears whole or not at all. One tensor at a time is held in memory.

    Linears inside the layers are stored as `kind`. The embedding and the head are stored as q8_0, or f16 for
    kind f16; so is, as f16, a matrix whose rows are no multiple of 32. Norms and biases are float32.

    Exact, but that q4_1 rounds scale * zero point to float16: linears of at most 4 bits as q4_1, of any width
    as q8_0 where |q - z| <= 127, and symmetric ones of 4 bits as q4_0, if group_size is a multiple of 32.

    Args:
        out: the file to make; must not exist.
        checkpoint: quantized or not.
        kind: "f16", "q8_0", "q4_0" or "q4_1".

    Returns: out.

    Raises:
        UsageError: for another kind.
        CheckpointError: if a weight is not finite or overflows float16, or the tokenizer is damaged.
        UnsupportedError: for an architecture, a tokenizer or a RoPE scaling that is not written.
        ResourceError: if out exists or cannot be written, or the disk is full.
    """
    if kind not in KINDS:
        raise UsageError(f"GGUF files of kind {kind!r:.80} are not written", why=f"known: {', '.join(KINDS)}")
    where = str(checkpoint.path)
    model_type = checkpoint.config["model_type"]
    if model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"a GGUF file of a {model_type!r:.80} model",
            where=where,
            why=f"architectures written: {', '.join(ARCHITECTURES)}",
            fix="convert the model with llama.cpp's convert_hf_to_gguf.py",
        )
    planned = list(_plan(checkpoint, kind))
    check_output(out, sum(math.prod(tensor.byte_shape) for tensor in planned))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f"{out.name}.", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        try:
            _write(partial, checkpoint, planned, kind, where)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.chmod(0o666 & ~_umask())
            check_output(out)  # once more: another process may have finished it meanwhile
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError("the GGUF file cannot be written", where=str(out), why=str(error)) from error
    return out


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _write(path: Path, checkpoint: Checkpoint, planned: list[_Planned], kind: str, where: str) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURES[checkpoint.config["model_type"]])
    try:
        writer.add_type("model")
        writer.add_file_type(KINDS[kind])
        writer.add_quantization_version(2)
        add_architecture(writer, checkpoint.config, where)
        add_tokenizer(writer, checkpoint.side_files, checkpoint.config, where)
        for tensor in planned:
            quantized = tensor.kind not in ("f16", "f32")
            writer.add_tensor_info(
                tensor.name,
                tensor.byte_shape if quantized else tensor.shape,
                np.dtype(np.uint8) if quantized else np.dtype(tensor.kind.replace("f", "float")),
                math.prod(tensor.byte_shape),
                GGMLQuantizationType[tensor.kind.upper()] if quantized else None,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(tensor.load())
    finally:
        writer.close()


def _plan(checkpoint: Checkpoint, kind: str) -> Iterator[_Planned]:
    for name, info in checkpoint.tensors.items():
        is_matrix = len(info.shape) == 2
        stored = _stored_kind(name, info.shape, kind) if is_matrix else "f32"
        yield _Planned(_their_name(name), stored, info.shape, _dense_loader(checkpoint, name, stored))
    for linear in checkpoint.quantized:
        name = f"{linear}.weight"
        shape = _shape_of(checkpoint, linear)
        stored = _stored_kind(name, shape, kind)
        yield _Planned(_their_name(name), stored, shape, _quantized_loader(checkpoint, linear, stored))
    scaling = checkpoint.config.get("rope_scaling")
    if scaling is not None and scaling["rope_type"] == "llama3":
        factors = llama3_factors(checkpoint.config, scaling).astype(np.float32)
        yield _Planned(ROPE_FACTORS, "f32", factors.shape, lambda: factors)


def _stored_kind(name: str, shape: tuple[int, ...], kind: str) -> str:
    if shape[-1] % BLOCK:
        return "f16"
    return kind if name.startswith("model.layers.") or kind == "f16" else "q8_0"


def _their_name(name: str) -> str:
    theirs = gguf_name(name)
    if theirs is None:
        raise UnsupportedError(f"a tensor that GGUF has no name for: {name}")
    return theirs


def _shape_of(checkpoint: Checkpoint, linear: str) -> tuple[int, int]:
    from awq_tvm.checkpoint.expected_tensors import expected_tensors

    rows, columns = (expected_tensors(checkpoint.config) or {})[f"{linear}.weight"]
    return rows, columns


def _row_order(checkpoint: Checkpoint, name: str, rows: int) -> NDArray[np.int64] | slice:
    """Return the rows in the order llama.cpp wants: that of q_proj and k_proj differs in its llama."""
    config = checkpoint.config
    if ARCHITECTURES[config["model_type"]] == "llama" and name.startswith("model.layers."):
        if ".q_proj" in name:
            return permuted_rows(rows, config["num_attention_heads"])
        if ".k_proj" in name:
            return permuted_rows(rows, config["num_key_value_heads"])
    return slice(None)


def _dense_loader(checkpoint: Checkpoint, name: str, kind: str) -> Callable[[], NDArray[Any]]:
    def load() -> NDArray[Any]:
        values = np.asarray(checkpoint.read(name), np.float32)
        values = values[_row_order(checkpoint, name, values.shape[0])]
        return _encoded(values, kind, f"{checkpoint.path}, tensor {name}")

    return load


def _quantized_loader(checkpoint: Checkpoint, linear: str, kind: str) -> Callable[[], NDArray[Any]]:
    def load() -> NDArray[Any]:
        weight = checkpoint.read_quantized(linear)
        order = _row_order(checkpoint, linear, weight.out_features)
        weight = replace(weight, q=weight.q[order], scales=weight.scales[order], zeros=weight.zeros[order])
        exact = exact_blocks(weight, kind)
        where = f"{checkpoint.path}, linear {linear}"
        return _encoded(weight.dequantize(), kind, where) if exact is None else exact

    return load


def _encoded(values: NDArray[np.float32], kind: str, where: str) -> NDArray[Any]:
    """Return the bytes of a tensor, or its floats where they are stored as such."""
    from gguf import GGMLQuantizationType, quants

    if kind == "f32":
        return np.ascontiguousarray(values)
    if kind == "f16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise CheckpointError(
                "a weight does not fit float16", where=where, why=f"the largest is {np.abs(values).max()}"
            )
        return half
    blocks: NDArray[Any] = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType[kind.upper()])
    return blocks


def exact_blocks(weight: QuantizedWeight, kind: str) -> NDArray[np.uint8] | None:
    """Return a linear in GGUF blocks that hold its own codes and scales, or None if there are none such.

    Args:
        weight: [N, K].
        kind: "q4_0": d * (c - 8); "q4_1": d * c + m; "q8_0": d * c; others have no blocks.

    Returns: uint8 [N, bytes of a row].
    """
    if weight.group_size % BLOCK or weight.group_of is not None or kind not in ("q4_0", "q4_1", "q8_0"):
        return None
    outputs, features = weight.q.shape
    shape = (outputs, features // BLOCK, BLOCK)
    repeat = weight.group_size // BLOCK
    codes = weight.q.reshape(shape).astype(np.int16)
    zeros = np.repeat(weight.zeros, repeat, axis=1).astype(np.int16)[:, :, None]
    parts = [_bytes(np.repeat(weight.scales, repeat, axis=1))]
    if kind == "q4_1":
        with np.errstate(over="ignore"):
            products = weight.scales.astype(np.float32) * weight.zeros
            offsets = np.repeat((-products).astype(np.float16), repeat, axis=1)
        if weight.bits > 4 or not np.isfinite(offsets).all():
            return None
        parts += [_bytes(offsets), _nibbles(codes)]
    else:
        codes = codes - zeros
        low, high = (-8, 7) if kind == "q4_0" else (-127, 127)
        if codes.min() < low or codes.max() > high:
            return None
        parts.append(_nibbles(codes + 8) if kind == "q4_0" else codes.astype(np.int8).view(np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=2)).reshape(outputs, -1)


def _bytes(halves: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return float16 [N, B] as little-endian bytes [N, B, 2]."""
    return np.ascontiguousarray(halves.astype("<f2"))[:, :, None].view(np.uint8)


def _nibbles(codes: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Pack [N, B, 32] into [N, B, 16]: byte i holds value i low, value i + 16 high."""
    return (codes[:, :, :16] | codes[:, :, 16:] << 4).astype(np.uint8)
