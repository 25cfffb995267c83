"""compressed-tensors "pack-quantized", for integer weights of 2 to 8 bits, in groups or by channel.

weight_packed int32 [N, ceil(K * bits / 32)] is one little-endian bit stream a row: value k at bits k * bits
and up, no bit unused (compressed-tensors 0.20; releases before it left bits unused for 3, 5, 6 and 7 bits,
which is told apart by the width and refused). weight_zero_point int32 [ceil(N * bits / 32), G] is packed the
same way, down the columns. weight_scale [N, G], weight_shape int64 [2] = [N, K]. The library counts from
-(2 ** (bits - 1)) and adds that offset before it packs, so what is packed is our unsigned q and z.
weight_g_idx int32 [K] is the group of each column where actorder is "group"; releases from 0.20 on have no such
weights any more.
Source: compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import PER_CHANNEL, QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.compressed_tensors_config import describe, parse_scheme
from awq_tvm.checkpoint.group_order import COMPRESSED_TENSORS_ORDER, in_order
from awq_tvm.checkpoint.packed_format import FLOATS, exact_float16, shapes_of
from awq_tvm.errors import CheckpointError, UnsupportedError


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack uint8 [R, C], each below 2 ** bits, into int32 [R, ceil(C * bits / 32)]."""
    rows, columns = values.shape
    groups = -(-columns // 32) * 4
    padded = np.zeros((rows, groups, 8), np.uint8)
    padded.reshape(rows, groups * 8)[:, :columns] = values
    # Eight values fill exactly `bits` bytes.
    octets = np.zeros(padded.shape[:2], "<u8")
    for i in range(8):
        octets |= padded[:, :, i].astype("<u8") << np.uint64(i * bits)
    stream = np.ascontiguousarray(octets.view(np.uint8).reshape(rows, groups, 8)[:, :, :bits])
    words = stream.reshape(rows, groups * bits).view("<i4")
    return np.ascontiguousarray(words[:, : packed_width(columns, bits)])


def unpack_bits(words: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.uint8]:
    """Undo `pack_bits`: int32 [R, ceil(columns * bits / 32)] into uint8 [R, columns]."""
    rows = words.shape[0]
    groups = -(-columns // 32) * 4
    stream = np.zeros((rows, groups * bits), np.uint8)
    stream.view("<i4")[:, : words.shape[1]] = words
    octets = np.zeros((rows, groups, 8), np.uint8)
    octets[:, :, :bits] = stream.reshape(rows, groups, bits)
    whole = octets.view("<u8")[:, :, 0]
    values = np.empty((rows, groups, 8), np.uint8)
    for i in range(8):
        values[:, :, i] = (whole >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
    return np.ascontiguousarray(values.reshape(rows, groups * 8)[:, :columns])


def packed_width(columns: int, bits: int) -> int:
    """Return how many int32 words a row of `columns` values takes."""
    return -(-columns * bits // 32)


class PackQuantized:
    """compressed-tensors on disk; see `packed_format.PackedFormat` for the methods."""

    name = "compressed-tensors"
    marker = "weight_packed"

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the names of the tensors of a linear; symmetric ones store no zero points."""
        names = ["weight_packed", "weight_scale", "weight_shape"]
        names += ["weight_zero_point"] if scheme.zero_point else []
        return (*names, COMPRESSED_TENSORS_ORDER) if scheme.act_order else tuple(names)

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config.

        Raises:
            CheckpointError: if a value is of the wrong type or out of range.
            UnsupportedError: for other formats of the library.
        """
        return parse_scheme(config, where)

    def describe(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """Return quantization_config as compressed-tensors writes it."""
        return describe(scheme)

    def refuses(self, scheme: QuantizationScheme) -> str | None:
        """Return None: every scheme can be stored."""
        return None

    def misfit(self, outputs: int, features: int) -> str | None:
        """Return None: every shape can be stored."""
        return None

    def check(self, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme) -> tuple[int, int]:
        """Return (N, K).

        Raises:
            CheckpointError: if shapes or dtypes disagree with each other or with the scheme.
            UnsupportedError: for the layout of releases before 0.20 where it differs.
        """
        packed, scale = infos["weight_packed"], infos["weight_scale"]
        dtypes = {
            "weight_packed": ("int32",),
            "weight_scale": FLOATS,
            "weight_shape": ("int64", "int32"),
            "weight_zero_point": ("int32",),
            COMPRESSED_TENSORS_ORDER: ("int32", "int64"),
        }
        vectors = ("weight_shape", COMPRESSED_TENSORS_ORDER)
        for suffix, info in infos.items():
            if info.dtype not in dtypes[suffix] or len(info.shape) != (1 if suffix in vectors else 2):
                raise CheckpointError("a packed tensor has the wrong dtype or rank", why=shapes_of(infos))
        outputs, groups = scale.shape
        bits = scheme.bits
        # By channel the words alone tell the width; `scheme_fit` sees to it that rows fill whole words.
        by_channel = scheme.group_size == PER_CHANNEL
        features = packed.shape[1] * 32 // bits if by_channel else groups * scheme.group_size
        older = -(-features // (32 // bits))
        if packed.shape == (outputs, older) and older != packed_width(features, bits):
            raise UnsupportedError(
                f"{bits}-bit weights as compressed-tensors before 0.20 packed them",
                why=shapes_of(infos),
                fix="save the checkpoint again with compressed-tensors 0.20 or later",
            )
        zeros = (packed_width(outputs, bits), groups)
        fits = packed.shape == (outputs, packed_width(features, bits)) and infos["weight_shape"].shape == (2,)
        fits = fits and (groups == 1 or not by_channel)
        if scheme.zero_point:
            fits = fits and infos["weight_zero_point"].shape == zeros
        if not fits:
            raise CheckpointError(
                f"the shapes do not fit each other, {bits} bits and group_size {scheme.group_size}",
                why=shapes_of(infos),
            )
        return outputs, features

    def pack(self, weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, NDArray[Any]]:
        """Return weight_packed, weight_scale, weight_shape; if asymmetric weight_zero_point; any weight_g_idx.

        Raises:
            CheckpointError: if the scheme is symmetric and a zero point is not the middle.
        """
        arrays: dict[str, NDArray[Any]] = {
            "weight_packed": pack_bits(weight.q, weight.bits),
            "weight_scale": np.ascontiguousarray(weight.scales),
            "weight_shape": np.array(weight.q.shape, np.int64),
        }
        if scheme.zero_point:
            arrays["weight_zero_point"] = np.ascontiguousarray(pack_bits(weight.zeros.T, weight.bits).T)
        elif (weight.zeros != 1 << (weight.bits - 1)).any():
            raise CheckpointError(
                "a symmetric scheme with zero points of its own",
                why=f"every zero point must be {1 << (weight.bits - 1)} where zero_point is false",
                fix="set zero_point to true",
            )
        if scheme.act_order:
            order = weight.group_of
            arrays[COMPRESSED_TENSORS_ORDER] = (
                in_order(weight.in_features, weight.group_size) if order is None else order
            )
        return arrays

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Undo `pack`, bit for bit; but that the reader of the folder adds the order of the groups.

        Raises:
            CheckpointError: if weight_shape contradicts the other shapes, or a scale is not finite and > 0.
        """
        scales = np.ascontiguousarray(exact_float16(arrays["weight_scale"], "weight_scale"))
        outputs, groups = scales.shape
        words = arrays["weight_packed"].shape[1]
        by_channel = scheme.group_size == PER_CHANNEL
        shape = (outputs, words * 32 // scheme.bits if by_channel else groups * scheme.group_size)
        if tuple(arrays["weight_shape"].tolist()) != shape:
            raise CheckpointError(
                "weight_shape contradicts the other tensors",
                why=f"{arrays['weight_shape'].tolist()}, they say {list(shape)}",
            )
        if scheme.zero_point:
            zeros = unpack_bits(arrays["weight_zero_point"].T, scheme.bits, outputs).T
        else:
            zeros = np.full(scales.shape, 1 << (scheme.bits - 1), np.uint8)
        return QuantizedWeight(
            q=unpack_bits(arrays["weight_packed"], scheme.bits, shape[1]),
            scales=scales,
            zeros=np.ascontiguousarray(zeros),
            bits=scheme.bits,
            group_size=scheme.width(shape[1]),
        )
