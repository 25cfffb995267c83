"""AutoAWQ's "gemm" layout, 4 bits, which transformers and vLLM load.

qweight int32 [K, N // 8]: eight 4-bit values of neighbouring output channels to a word; nibble i (from the
low end) holds channel `_ORDER[i]`. qzeros int32 [G, N // 8] is packed the same way; scales float16 [G, N].
Source: AutoAWQ, awq/utils/packing_utils.py and awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.packed_format import (
    FLOATS,
    describe_as_awq,
    exact_float16,
    parse_awq_section,
    refuses_as_awq,
    shapes_of,
)
from awq_tvm.errors import CheckpointError

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Pack uint8 [N, R], each below 16, N a multiple of 8, into int32 [R, N // 8]."""
    words = np.zeros((values.shape[0] // 8, values.shape[1]), np.uint32)
    for place, channel in enumerate(_ORDER):
        words |= values[channel::8].astype(np.uint32) << np.uint32(4 * place)
    return np.ascontiguousarray(words.T).view(np.int32)


def unpack_nibbles(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Undo `pack_nibbles`: int32 [R, C] into uint8 [C * 8, R]."""
    # Turning the words before they are unpacked moves an eighth of the elements that turning the values does.
    turned = np.ascontiguousarray(words.T).view(np.uint32)
    values = np.empty((turned.shape[0] * 8, turned.shape[1]), np.uint8)
    for place, channel in enumerate(_ORDER):
        values[channel::8] = (turned >> np.uint32(4 * place)) & np.uint32(15)
    return values


class AwqGemm:
    """AutoAWQ "gemm" on disk; see `packed_format.PackedFormat` for the methods."""

    name = "awq"
    marker = "qweight"

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the names of the three tensors of a linear."""
        return ("qweight", "qzeros", "scales")

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config.

        Raises:
            CheckpointError: if a value is out of range.
            UnsupportedError: for another layout, or other than 4 bits.
        """
        return parse_awq_section(config, "gemm", where)

    def describe(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """Return quantization_config as AutoAWQ writes it."""
        return describe_as_awq(scheme, {"version": "gemm"})

    def refuses(self, scheme: QuantizationScheme) -> str | None:
        """Say why no weight of such a scheme can be stored, or None."""
        return refuses_as_awq(scheme)

    def misfit(self, outputs: int, features: int) -> str | None:
        """Say why a linear [outputs, features] cannot be stored, or None."""
        return f"out_features {outputs} is not a multiple of 8" if outputs % 8 else None

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
        features, groups = qweight.shape[0], scales.shape[0]
        outputs = scales.shape[1]
        if outputs % 8:
            raise CheckpointError(
                "out_features is not a multiple of 8", why=f"scales say {outputs}; {shapes_of(infos)}"
            )
        if features % scheme.group_size:
            raise CheckpointError(f"group_size {scheme.group_size} does not divide in_features {features}")
        needed = (features // scheme.group_size, outputs // 8)
        if groups != needed[0] or qzeros.shape != needed or qweight.shape[1] != needed[1]:
            raise CheckpointError(
                f"the shapes do not fit each other and group_size {scheme.group_size}", why=shapes_of(infos)
            )
        return outputs, features

    def pack(self, weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, NDArray[Any]]:
        """Return qweight, qzeros and scales.

        Raises:
            CheckpointError: if N is not a multiple of 8.
        """
        if problem := self.misfit(weight.out_features, weight.in_features):
            raise CheckpointError(
                problem,
                why="AutoAWQ gemm packs eight output channels to a word",
                fix="leave this linear dense, or choose another bit width",
            )
        return {
            "qweight": pack_nibbles(weight.q),
            "qzeros": pack_nibbles(weight.zeros),
            "scales": np.ascontiguousarray(weight.scales.T),
        }

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Undo `pack`, bit for bit.

        Raises:
            CheckpointError: if a scale is not finite or not > 0.
        """
        return QuantizedWeight(
            q=unpack_nibbles(arrays["qweight"]),
            scales=np.ascontiguousarray(exact_float16(arrays["scales"], "scales").T),
            zeros=unpack_nibbles(arrays["qzeros"]),
            bits=scheme.bits,
            group_size=scheme.group_size,
        )
