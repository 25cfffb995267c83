"""AutoAWQ's "gemv" layout, 4 bits: read only.

qweight int32 [N, K // 8]: nibble i (from the low end) of word j holds input channel 8 * j + i. qzeros int32
[N, Z] holds the zero points of a row's groups in the same way, scales float16 [N, 8 * Z]; both are padded
beyond the G groups, see `zeros_width`. Source: AutoAWQ, awq/modules/linear/gemv.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.compressed_tensors import unpack_bits
from awq_tvm.checkpoint.packed_format import FLOATS, exact_float16, parse_awq_section, shapes_of
from awq_tvm.errors import CheckpointError, UnsupportedError


def zeros_width(features: int, group_size: int) -> int:
    """Return Z, the int32 words that the zero points of one row take: enough for 1024 channels at a time."""
    words = -(-(features // group_size) // 8)
    step = max(1, 128 // group_size)
    return -(-words // step) * step


def padded_group_problem(group_size: int) -> str | None:
    """Say why `zeros_width` is not defined for a group size, or None."""
    if group_size in (32, 64) or group_size >= 128:
        return None
    return f"group_size is {group_size}; the layout has 32, 64, and 128 and above"


def parse_padded_section(config: Mapping[str, Any], version: str, where: str) -> QuantizationScheme:
    """Read the quantization_config of a layout with padded groups.

    Raises:
        CheckpointError: if a value is out of range.
        UnsupportedError: for another layout, other than 4 bits, or a group size that the layout lacks.
    """
    scheme = parse_awq_section(config, version, where)
    if problem := padded_group_problem(scheme.group_size):
        raise UnsupportedError(f"AWQ {version} weights in such groups", where=where, why=problem)
    return scheme


class AwqGemv:
    """AutoAWQ "gemv" on disk; see `packed_format.PackedFormat` for the methods."""

    name = "awq-gemv"
    marker = "qweight"

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the names of the three tensors of a linear."""
        return ("qweight", "qzeros", "scales")

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config; see `parse_padded_section` for what it raises."""
        return parse_padded_section(config, "gemv", where)

    def check(self, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme) -> tuple[int, int]:
        """Return (N, K).

        Raises:
            CheckpointError: if shapes or dtypes disagree with each other or with the scheme.
        """
        qweight, qzeros, scales = infos["qweight"], infos["qzeros"], infos["scales"]
        if any(len(info.shape) != 2 for info in infos.values()):
            raise CheckpointError("a packed tensor is not a matrix", why=shapes_of(infos))
        if qweight.dtype != "int32" or qzeros.dtype != "int32" or scales.dtype not in FLOATS:
            raise CheckpointError("a packed tensor has the wrong dtype", why=shapes_of(infos))
        outputs, features = qweight.shape[0], qweight.shape[1] * 8
        if features % scheme.group_size:
            raise CheckpointError(f"group_size {scheme.group_size} does not divide in_features {features}")
        width = zeros_width(features, scheme.group_size)
        if qzeros.shape != (outputs, width) or scales.shape != (outputs, width * 8):
            raise CheckpointError(
                f"the shapes do not fit each other and group_size {scheme.group_size}", why=shapes_of(infos)
            )
        return outputs, features

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Return the linear; what the padding holds does not matter.

        Raises:
            CheckpointError: if a scale is not finite or not > 0.
        """
        features = arrays["qweight"].shape[1] * 8
        groups = features // scheme.group_size
        return QuantizedWeight(
            q=unpack_bits(arrays["qweight"], 4, features),
            scales=np.ascontiguousarray(exact_float16(arrays["scales"][:, :groups], "scales")),
            zeros=unpack_bits(arrays["qzeros"][:, : -(-groups // 8)], 4, groups),
            bits=4,
            group_size=scheme.group_size,
        )
