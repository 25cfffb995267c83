"""Hugging Face folders: dense, or with linears in one of `formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import Checkpoint, QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.config import MAX_CONFIG_BYTES, parse_config
from awq_tvm.checkpoint.expected_tensors import check_weights, expected_tensors
from awq_tvm.checkpoint.folder import WeightFolder, read_side_files, safe_file
from awq_tvm.checkpoint.formats import format_of
from awq_tvm.checkpoint.group_order import COMPRESSED_TENSORS_ORDER, ORDER_SUFFIXES, read_group_order
from awq_tvm.checkpoint.json_file import read_bounded
from awq_tvm.checkpoint.module_targets import matching_target
from awq_tvm.checkpoint.packed_format import PackedFormat
from awq_tvm.errors import AwqTvmError, CheckpointError, UnsupportedError

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def open_folder(folder: Path, source: str) -> Checkpoint:
    """Open a folder with config.json and safetensors.

    Args:
        folder: the folder.
        source: what the user typed.

    Raises:
        CheckpointError: if anything in the folder is damaged, lies, or does not fit the rest.
        UnsupportedError: for a quantization that is not read here.
    """
    config_path = safe_file(folder, "config.json")
    config = parse_config(read_bounded(config_path, MAX_CONFIG_BYTES), str(config_path))
    packed, scheme = _quantization(config.get("quantization_config"), str(config_path))
    weights = WeightFolder(folder)
    tensors = {
        name: info for name, info in weights.tensors.items() if not name.endswith(".rotary_emb.inv_freq")
    }
    _untie(config, tensors, weights)
    shapes = {name: info.shape for name, info in tensors.items()}
    linears: dict[str, dict[str, TensorInfo]] = {}
    orders: dict[str, NDArray[np.int32]] = {}
    if packed is not None and scheme is not None:
        linears = _take_linears(packed, scheme, tensors, str(folder))
        packed_shapes = {}
        for name, infos in linears.items():
            packed_shapes[name] = _check_linear(packed, infos, scheme.of(name), f"{folder}, linear {name}")
        orders = _take_orders(packed, tensors, weights, packed_shapes, scheme)
        scheme = _with_act_order(scheme, orders)
        _drop_zero_biases(config, tensors, weights, linears)
        shapes = {name: info.shape for name, info in tensors.items()}
        shapes |= {f"{name}.weight": shape for name, shape in packed_shapes.items()}
    check_weights(config, shapes, str(folder))

    return Checkpoint(
        source=source,
        path=folder,
        format="huggingface" if packed is None else packed.name,
        config=config,
        scheme=scheme,
        tensors=tensors,
        quantized=tuple(linears),
        load_dense=weights.read,
        load_quantized=_linear_loader(packed, scheme, weights, linears, orders)
        if packed and scheme
        else None,
        load_side_files=lambda: read_side_files(folder),
    )


def _linear_loader(
    packed: PackedFormat,
    scheme: QuantizationScheme,
    weights: WeightFolder,
    linears: Mapping[str, Iterable[str]],
    orders: Mapping[str, NDArray[np.int32]],
) -> Callable[[str], QuantizedWeight]:
    def load(name: str) -> QuantizedWeight:
        arrays = {suffix: weights.read(f"{name}.{suffix}") for suffix in linears[name]}
        weight = packed.unpack(arrays, scheme.of(name))
        return replace(weight, group_of=orders[name]) if name in orders else weight

    return load


def _quantization(section: object, where: str) -> tuple[PackedFormat | None, QuantizationScheme | None]:
    """Return the format and scheme that config.json's quantization_config names; (None, None) without one."""
    if section is None:
        return None, None
    if not isinstance(section, dict):
        raise CheckpointError(
            "quantization_config is not an object", where=where, why=f"found {section!r:.80}"
        )
    packed = format_of(section, where)
    return packed, packed.parse_scheme(section, where)


def _untie(config: Mapping[str, Any], tensors: dict[str, TensorInfo], weights: WeightFolder) -> None:
    """Drop a stored lm_head that only repeats the tied embedding, so that readers see it once."""
    if not config.get("tie_word_embeddings") or _HEAD not in tensors or _EMBEDDING not in tensors:
        return
    if tensors[_HEAD] != tensors[_EMBEDDING] or not _same_bytes(
        weights.read(_HEAD), weights.read(_EMBEDDING)
    ):
        raise CheckpointError(
            "lm_head.weight differs from the embedding it is tied to",
            where=str(weights.folder),
            why="config.json says tie_word_embeddings: true",
            fix="set tie_word_embeddings to false in config.json if the separate head is meant",
        )
    del tensors[_HEAD]


def _same_bytes(left: NDArray[Any], right: NDArray[Any]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)


def _take_linears(
    packed: PackedFormat, scheme: QuantizationScheme, tensors: dict[str, TensorInfo], where: str
) -> dict[str, dict[str, TensorInfo]]:
    """Move the tensors of quantized linears out of `tensors`; return linear -> suffix -> info."""
    marker = f".{packed.marker}"
    linears = {}
    for name in [name.removesuffix(marker) for name in tensors if name.endswith(marker)]:
        suffixes = packed.suffixes(scheme.of(name))
        absent = [suffix for suffix in suffixes if f"{name}.{suffix}" not in tensors]
        if absent:
            raise CheckpointError(
                "a quantized linear is incomplete", where=f"{where}, linear {name}", why=f"no {absent}"
            )
        linears[name] = {suffix: tensors.pop(f"{name}.{suffix}") for suffix in suffixes}
    if not linears:
        raise CheckpointError(
            "config.json says quantized, but no linear is", where=where, why=f"no tensor is named *{marker}"
        )
    return linears


def _take_orders(
    packed: PackedFormat,
    tensors: dict[str, TensorInfo],
    weights: WeightFolder,
    shapes: Mapping[str, tuple[int, int]],
    scheme: QuantizationScheme,
) -> dict[str, NDArray[np.int32]]:
    """Move the g_idx of every linear out of `tensors`; return those that scatter the channels of a group."""
    orders = {}
    for name, (_, features) in shapes.items():
        for suffix in ORDER_SUFFIXES.values():
            key = f"{name}.{suffix}"
            if key in weights.tensors:
                tensors.pop(key, None)
                stored = weights.read(key)
                if suffix == COMPRESSED_TENSORS_ORDER and stored.size and (stored == -1).all():
                    continue  # as the library leaves it where nothing was reordered
                where = f"{weights.folder}, linear {name}"
                order = read_group_order(stored, features, scheme.of(name).width(features), where)
                if order is None:
                    continue
                if ORDER_SUFFIXES.get(packed.name) != suffix:
                    raise UnsupportedError(
                        "weights in activation order, in a format that has none",
                        where=where,
                        why=f"{suffix} scatters the groups; {packed.name} readers do not look at it",
                        fix="quantize the original model with this tool",
                    )
                orders[name] = order
    return orders


def _with_act_order(scheme: QuantizationScheme, scattered: Iterable[str]) -> QuantizationScheme:
    """Return a scheme that says act_order where a linear has it, whatever config.json said."""
    targets = {matching_target(name, scheme.exceptions) for name in scattered}
    exceptions = {name: replace(one, act_order=name in targets) for name, one in scheme.exceptions.items()}
    return replace(scheme, act_order=None in targets, exceptions=exceptions)


def _drop_zero_biases(
    config: Mapping[str, Any], tensors: dict[str, TensorInfo], weights: WeightFolder, linears: Iterable[str]
) -> None:
    """Drop biases that the architecture lacks and that are all zero: AutoGPTQ stores one for every linear."""
    expected = expected_tensors(config)
    for key in [f"{name}.bias" for name in linears]:
        if expected is not None and key in tensors and key not in expected and not weights.read(key).any():
            del tensors[key]


def _check_linear(
    packed: PackedFormat, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme, where: str
) -> tuple[int, int]:
    try:
        return packed.check(infos, scheme)
    except AwqTvmError as error:
        raise type(error)(error.what, where=where, why=error.why, fix=error.fix) from None
