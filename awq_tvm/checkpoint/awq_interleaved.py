"""The interleaved 4-bit layout of llm-awq's second version, which TinyChat loads; AutoAWQ: "gemv_fast".

qweight int16 [N // 4, K]: every 64 words hold 4 output by 64 input channels. Of these, word
16 * (n % 4) + 8 * (k % 64 // 32) + k % 8 holds W[n, k] in nibble k % 32 // 8 (from the low end).
scales float16 [8 * Z, N] are padded with zeros beyond the G groups, see `awq_gemv.zeros_width`; the zero
points, scaled_zeros in llm-awq and qzeros in AutoAWQ, are floats of the same shape: -(scale * zero point),
rounded once. Source: llm-awq, awq/quantize/qmodule.py; AutoAWQ, awq/modules/linear/gemv_fast.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.awq_gemv import padded_group_problem, parse_padded_section, zeros_width
from awq_tvm.checkpoint.base import QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.packed_format import (
    FLOATS,
    describe_as_awq,
    exact_float16,
    refuses_as_awq,
    shapes_of,
)
from awq_tvm.errors import CheckpointError


def pack_interleaved(values: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Pack uint8 [N, K], each below 16, N a multiple of 4 and K of 64, into int16 [N // 4, K]."""
    outputs, features = values.shape
    tiles = values.reshape(outputs // 4, 4, features // 64, 2, 4, 8)
    words = np.zeros((outputs // 4, 4, features // 64, 2, 8), np.uint16)
    for nibble in range(4):
        words |= tiles[:, :, :, :, nibble].astype(np.uint16) << np.uint16(4 * nibble)
    return np.ascontiguousarray(words.swapaxes(1, 2)).reshape(outputs // 4, features).view(np.int16)


def unpack_interleaved(words: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Undo `pack_interleaved`: int16 [R, K] into uint8 [4 * R, K]."""
    rows, features = words.shape
    tiles = np.ascontiguousarray(words).view(np.uint16).reshape(rows, features // 64, 4, 2, 8).swapaxes(1, 2)
    values = np.empty((rows, 4, features // 64, 2, 4, 8), np.uint8)
    for nibble in range(4):
        values[:, :, :, :, nibble] = (tiles >> np.uint16(4 * nibble)) & np.uint16(15)
    return values.reshape(rows * 4, features)


def scaled_zero_points(zeros: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
    """Return -(scales * zeros) in the dtype of scales, rounded once, as llm-awq computes it."""
    with np.errstate(over="ignore"):  # Inf is looked for by who calls
        scaled: NDArray[Any] = -(scales.astype(np.float32) * zeros.astype(np.float32)).astype(scales.dtype)
    return scaled


def recover_zero_points(scaled: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.uint8]:
    """Undo `scaled_zero_points`; 0 where the scale itself makes no sense.

    Raises:
        CheckpointError: if a value is not what an integer from 0 to 15 gives, to the bit.
    """
    steps = scales.astype(np.float32)
    sane = np.isfinite(steps) & (steps > 0)
    with np.errstate(all="ignore"):
        zeros = np.where(sane, np.rint(-scaled.astype(np.float32) / steps), 0)
        good = (zeros >= 0) & (zeros <= 15)
        zeros = np.where(good, zeros, 0)
        good &= ~sane | (scaled_zero_points(zeros, scales) == scaled)
    if not good.all():
        group, output = (int(i) for i in np.argwhere(~good)[0])
        raise CheckpointError(
            "a zero point is not an integer from 0 to 15",
            why=f"scale * zero point [{group}, {output}] is stored as {scaled[group, output]}, "
            f"the scale {scales[group, output]} ({int((~good).sum())} such)",
            fix="take a gemm version of the checkpoint, or quantize the original model with this tool",
        )
    return zeros.astype(np.uint8)


@dataclass(frozen=True)
class Interleaved:
    """The layout on disk, as llm-awq or as AutoAWQ names it; see `packed_format.WritableFormat` for the methods.

    Attributes:
        name: of the format.
        version: what `packed_format.awq_version` calls it.
        zeros: suffix of the scaled zero points.
        section: what quantization_config says of it.
    """

    name: str
    version: str
    zeros: str
    section: Mapping[str, str]

    marker = "qweight"

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the names of the three tensors of a linear."""
        return ("qweight", "scales", self.zeros)

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config; see `awq_gemv.parse_padded_section` for what it raises."""
        return parse_padded_section(config, self.version, where)

    def describe(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """Return quantization_config as AutoAWQ, or llm-awq's converter, writes it."""
        return describe_as_awq(scheme, self.section)

    def refuses(self, scheme: QuantizationScheme) -> str | None:
        """Say why no weight of such a scheme can be stored, or None."""
        return refuses_as_awq(scheme) or padded_group_problem(scheme.group_size)

    def misfit(self, outputs: int, features: int) -> str | None:
        """Say why a linear [outputs, features] cannot be stored, or None."""
        if outputs % 8:
            return f"out_features {outputs} is not a multiple of 8"
        return f"in_features {features} is not a multiple of 64" if features % 64 else None

    def check(self, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme) -> tuple[int, int]:
        """Return (N, K).

        Raises:
            CheckpointError: if shapes or dtypes disagree with each other or with the scheme.
        """
        qweight, scales, scaled = infos["qweight"], infos["scales"], infos[self.zeros]
        if any(len(info.shape) != 2 for info in infos.values()):
            raise CheckpointError("a packed tensor is not a matrix", why=shapes_of(infos))
        if qweight.dtype != "int16" or scales.dtype not in FLOATS or scaled.dtype != scales.dtype:
            raise CheckpointError("a packed tensor has the wrong dtype", why=shapes_of(infos))
        outputs, features = qweight.shape[0] * 4, qweight.shape[1]
        if problem := self.misfit(outputs, features):
            raise CheckpointError(problem, why=shapes_of(infos))
        if features % scheme.group_size:
            raise CheckpointError(f"group_size {scheme.group_size} does not divide in_features {features}")
        needed = (zeros_width(features, scheme.group_size) * 8, outputs)
        if scales.shape != needed or scaled.shape != needed:
            raise CheckpointError(
                f"the shapes do not fit each other and group_size {scheme.group_size}", why=shapes_of(infos)
            )
        return outputs, features

    def pack(self, weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, NDArray[Any]]:
        """Return qweight, scales and scaled zero points.

        Raises:
            CheckpointError: if the shape does not fit the layout, or scale * zero point overflows float16.
        """
        outputs, features = weight.q.shape
        if problem := self.misfit(outputs, features):
            raise CheckpointError(
                problem, why="the layout has tiles of 4 by 64", fix="leave this linear dense"
            )
        shape = (zeros_width(features, weight.group_size) * 8, outputs)
        scales, scaled = np.zeros(shape, np.float16), np.zeros(shape, np.float16)
        groups = weight.scales.shape[1]
        scales[:groups] = weight.scales.T
        scaled[:groups] = scaled_zero_points(weight.zeros.T, weight.scales.T)
        if not np.isfinite(scaled).all():
            raise CheckpointError(
                "a scale is too large for this format",
                why=f"the largest is {weight.scales.max()}, and scale * zero point must fit float16",
                fix="choose another format",
            )
        return {"qweight": pack_interleaved(weight.q), "scales": scales, self.zeros: scaled}

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Undo `pack`, bit for bit.

        Raises:
            CheckpointError: if a zero point is no integer from 0 to 15, or a scale not finite and > 0.
        """
        groups = arrays["qweight"].shape[1] // scheme.group_size
        scales = arrays["scales"][:groups]
        zeros = recover_zero_points(arrays[self.zeros][:groups], scales)
        return QuantizedWeight(
            q=unpack_interleaved(arrays["qweight"]),
            scales=np.ascontiguousarray(exact_float16(scales, "scales").T),
            zeros=np.ascontiguousarray(zeros.T),
            bits=4,
            group_size=scheme.group_size,
        )


LLM_AWQ = Interleaved("llm-awq", "llm-awq", "scaled_zeros", {"version": "gemv", "backend": "llm-awq"})
GEMV_FAST = Interleaved("awq-gemv-fast", "gemv_fast", "qzeros", {"version": "gemv_fast"})
