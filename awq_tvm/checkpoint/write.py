"""Write quantized checkpoints, in any of `formats.WRITABLE`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import QuantizationScheme, QuantizedWeight
from awq_tvm.checkpoint.config import normalise_config
from awq_tvm.checkpoint.finite import first_nonfinite
from awq_tvm.checkpoint.folder import INDEX, SIDE_FILES, SINGLE
from awq_tvm.checkpoint.formats import AUTO, format_to_write
from awq_tvm.checkpoint.huggingface import open_folder
from awq_tvm.checkpoint.packed_format import WritableFormat
from awq_tvm.checkpoint.safetensors_file import DTYPE_NAMES
from awq_tvm.checkpoint.scheme_fit import check_scheme_fits, least_bytes
from awq_tvm.errors import AwqTvmError, CheckpointError
from awq_tvm.output_folder import output_folder, write_synced

DEFAULT_SHARD_BYTES = 2 << 30
_DENSE_DTYPES = ("float16", "bfloat16", "float32")


def write_quantized_checkpoint(
    out: Path,
    *,
    config: Mapping[str, Any],
    scheme: QuantizationScheme,
    dense: Iterable[tuple[str, NDArray[Any]]],
    quantized: Iterable[tuple[str, QuantizedWeight]],
    side_files: Mapping[str, bytes],
    card: str | Callable[[Path], str],
    format: str = AUTO,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Path:
    """Write a folder that `open_checkpoint`, transformers and vLLM read; it appears whole or not at all.

    Both iterables are consumed once, dense first; at most one shard of tensors is held in memory.

    Args:
        out: the folder to make; must not exist.
        config: as `Checkpoint.config`; its quantization_config and dtype are replaced.
        scheme: what the quantized weights have; its exceptions name the embedding if that is one of them. As
            modules_to_not_convert the linears of `dense` are written, by full name, and a tied lm_head.
        dense: full tensor names ("model.norm.weight") with float16, bfloat16 or float32, stored as given.
        quantized: names of linears ("model.layers.0.mlp.up_proj"), weights; a bias goes into `dense`.
        side_files: as `Checkpoint.side_files`.
        card: the text of README.md; or a function that is given the folder, all else in it and checked, and
            returns the text.
        format: "awq" (AutoAWQ "gemm"), "awq-gemv-fast", "llm-awq" (v2), "compressed-tensors", or "auto": awq
            for 4 bits with zero points, compressed-tensors otherwise.
        max_shard_bytes: a shard is closed before it grows past this, but holds at least one linear.

    Returns: out.

    Raises:
        UsageError: if the scheme does not fit the model, or the format does not store it.
        CheckpointError: if a tensor is missing, extra, misshapen, not finite, or given twice.
        ResourceError: if out exists, cannot be written, is being written by another process; disk full.
    """
    where = str(out)
    packed = format_to_write(format, scheme)
    config = normalise_config(config, where)
    check_scheme_fits(config, scheme, format)
    _check_side_files(side_files, where)
    with output_folder(out, needed_bytes=least_bytes(config, scheme)) as folder:
        writer = _ShardWriter(folder, max_shard_bytes)
        for name, array in dense:
            writer.add_dense(name, _checked_dense(name, array, where))
        for name, weight in quantized:
            writer.add_quantized(name, _packed_linear(packed, scheme.of(name), name, weight, where))
        writer.finish()
        section = packed.describe(replace(scheme, modules_to_not_convert=writer.dense_linears()))
        write_synced(folder / "config.json", _json(_final_config(config, section, writer.dtypes)))
        for name, content in side_files.items():
            write_synced(folder / name, content)
        _verify(folder, where)
        text = card if isinstance(card, str) else card(folder)
        write_synced(folder / "README.md", text.encode())
    return out


def _check_side_files(side_files: Mapping[str, bytes], where: str) -> None:
    if unknown := [name for name in side_files if name not in SIDE_FILES]:
        raise CheckpointError(
            "a file that does not belong into a checkpoint",
            where=where,
            why=f"{', '.join(map(repr, unknown))}; known: {', '.join(SIDE_FILES)}",
        )


def _checked_dense(name: str, array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.dtype.name not in _DENSE_DTYPES:
        raise CheckpointError(
            "a dense tensor of a dtype that is not written",
            where=f"{where}, tensor {name}",
            why=f"{array.dtype}; needed: {', '.join(_DENSE_DTYPES)}",
        )
    index = first_nonfinite(array)
    if index is not None:
        raise CheckpointError(
            "a weight is not a finite number",
            where=f"{where}, tensor {name}",
            why=f"{name}{list(index)} is {array[index]}",
        )
    return np.ascontiguousarray(array)


def _packed_linear(
    packed: WritableFormat, scheme: QuantizationScheme, name: str, weight: QuantizedWeight, where: str
) -> dict[str, NDArray[Any]]:
    place = f"{where}, linear {name}"
    if (weight.bits, weight.group_size) != (scheme.bits, scheme.width(weight.in_features)):
        raise CheckpointError(
            "a linear is quantized otherwise than the scheme says",
            where=place,
            why=f"{weight.bits} bits, group_size {weight.group_size}; not {scheme.bits}, {scheme.group_size}",
        )
    if weight.group_of is not None and not scheme.act_order:
        raise CheckpointError(
            "a linear is quantized otherwise than the scheme says",
            where=place,
            why="the channels of its groups are scattered, and act_order is false",
        )
    try:
        arrays = packed.pack(weight, scheme)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=place, why=error.why, fix=error.fix) from None
    return {f"{name}.{suffix}": array for suffix, array in arrays.items()}


def _final_config(
    config: Mapping[str, Any], section: dict[str, Any], dtypes: Mapping[str, int]
) -> dict[str, Any]:
    """Return config.json: the model's own, with what is true of this folder."""
    result = {
        key: value
        for key, value in config.items()
        if key not in ("quantization_config", "dtype", "torch_dtype")
    }
    # The older key: transformers 4 and 5 and vLLM all read it.
    result["torch_dtype"] = max(dtypes, key=lambda name: dtypes[name], default="float16")
    result["quantization_config"] = section
    return result


def _verify(folder: Path, where: str) -> None:
    """Read back headers and config: what this package would refuse is never left on disk."""
    try:
        open_folder(folder, where)
    except AwqTvmError as error:
        text = [part and part.replace(str(folder), where) for part in (error.where, error.why)]
        raise CheckpointError(error.what, where=text[0], why=text[1], fix=error.fix) from None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


class _ShardWriter:
    """Collects tensors and writes a shard whenever enough are there."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.dtypes: dict[str, int] = {}  # of dense tensors: name -> bytes
        self._matrices: list[str] = []
        self._pending: dict[str, NDArray[Any]] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._seen: set[str] = set()
        self._quantized: set[str] = set()
        self._total = 0

    def add_dense(self, name: str, array: NDArray[Any]) -> None:
        """Take one dense tensor."""
        self.dtypes[array.dtype.name] = self.dtypes.get(array.dtype.name, 0) + array.nbytes
        if array.ndim == 2 and name.endswith(".weight"):
            self._matrices.append(name.removesuffix(".weight"))
        self.add({name: array})

    def dense_linears(self) -> tuple[str, ...]:
        """Return the modules that are not quantized, by full name, which every reader understands."""
        linears = [name for name in self._matrices if not name.endswith("embed_tokens")]
        # A tied head has no tensor; readers must still be told that it is not quantized by itself.
        return tuple(name for name in dict.fromkeys([*linears, "lm_head"]) if name not in self._quantized)

    def add_quantized(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the tensors of one quantized linear."""
        self._quantized.add(name)
        self.add(arrays)

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take tensors that must stay in one shard."""
        nbytes = sum(array.nbytes for array in arrays.values())
        if self._pending and self._pending_bytes + nbytes > self.max_bytes:
            self._write_shard()
        for name, array in arrays.items():
            if name in self._seen:
                raise CheckpointError("a tensor is given twice", where=f"{self.folder.stem}, tensor {name}")
            self._seen.add(name)
            self._pending[name] = array
        self._pending_bytes += nbytes

    def finish(self) -> None:
        """Write what is left, give the shards their names, and write the index if there are several."""
        self._write_shard()
        count = len(self._shards)
        if count == 1:
            self._temporary(0).rename(self.folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._temporary(number).rename(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        write_synced(
            self.folder / INDEX, _json({"metadata": {"total_size": self._total}, "weight_map": weight_map})
        )

    def _temporary(self, number: int) -> Path:
        return self.folder / f"shard-{number}"

    def _write_shard(self) -> None:
        # Big items first keeps every tensor aligned to its own item size.
        arrays = dict(sorted(self._pending.items(), key=lambda item: -item[1].dtype.itemsize))
        with self._temporary(len(self._shards)).open("xb") as file:
            for chunk in _serialise(arrays):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        self._shards.append(list(arrays))
        self._total += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0


def _serialise(arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in arrays.items():
        offsets = [position, position + array.nbytes]
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        position = offsets[1]
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # the data begins 8-byte aligned
    yield len(raw).to_bytes(8, "little")
    yield raw
    for array in arrays.values():
        yield array.reshape(-1).view(np.uint8).data
