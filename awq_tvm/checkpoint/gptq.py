"""GPTQ weights of 2, 3, 4 and 8 bits as AutoGPTQ and GPTQModel store them: read only.

qweight int32 [K * bits / 32, N] is one little-endian bit stream down each column: value k at bits k * bits
and up. qzeros int32 [G, N * bits / 32] is packed the same way along the rows; scales float16 [G, N]. Files
whose checkpoint_format is "gptq" store zero points minus one, those of "gptq_v2" as they are. g_idx int32
[K], where present, is the group of each input channel; see `group_order`. It is read with the folder.
Source: AutoGPTQ, auto_gptq/nn_modules/qlinear; GPTQModel, gptqmodel/utils/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.compressed_tensors import unpack_bits
from awq_tvm.checkpoint.packed_format import FLOATS, checked_scheme, exact_float16, shapes_of
from awq_tvm.errors import CheckpointError, UnsupportedError

_BITS = (2, 3, 4, 8)
_ZERO_POINT_OFFSETS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True)
class Gptq:
    """GPTQ on disk; see `packed_format.PackedFormat` for the methods.

    Attributes:
        zero_point_offset: what must be added to a stored zero point: 1, or 0 in files of version 2.
        needs_order: True if the config says that groups are scattered, so that g_idx must be there.
    """

    zero_point_offset: int = 1
    needs_order: bool = False

    name = "gptq"
    marker = "qweight"

    @classmethod
    def of(cls, section: Mapping[str, Any], where: str) -> Gptq:
        """Return the variant that a quantization_config names.

        Raises:
            UnsupportedError: for a repacked variant, such as marlin.
        """
        layout = section.get("checkpoint_format", section.get("format", "gptq"))
        if section.get("is_marlin_format"):
            layout = "marlin"
        if not isinstance(layout, str) or layout not in _ZERO_POINT_OFFSETS:
            raise UnsupportedError(
                f"GPTQ weights in the {layout!r:.80} layout",
                where=where,
                why=f"checkpoint_format must be one of {', '.join(_ZERO_POINT_OFFSETS)}",
                fix="take a version of the checkpoint in one of these, or quantize the original model",
            )
        return cls(_ZERO_POINT_OFFSETS[layout], bool(section.get("desc_act", False)))

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the names of the tensors of a linear."""
        common = ("qweight", "qzeros", "scales")
        return (*common, "g_idx") if self.needs_order else common

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config.

        Raises:
            CheckpointError: if a value is out of range.
            UnsupportedError: for other bit widths, per-channel scales, or linears quantized differently.
        """
        refused = []
        if config.get("dynamic"):
            refused.append("dynamic gives linears schemes of their own")
        if config.get("pack_dtype", "int32") != "int32":
            refused.append(f"pack_dtype is {config['pack_dtype']!r:.80}")
        if config.get("group_size") == -1:
            refused.append("group_size is -1 (one scale a row)")
        bits = config.get("bits")
        if type(bits) is int and 2 <= bits <= 8 and bits not in _BITS:
            refused.append(f"bits is {bits}; widths read: {', '.join(map(str, _BITS))}")
        if refused:
            raise UnsupportedError(
                "a variant of GPTQ that is not read",
                where=where,
                why="; ".join(refused),
                fix="quantize the original model with this tool",
            )
        skipped = [] if config.get("lm_head") else ["lm_head"]
        symmetric = config.get("sym", True)
        zero_point = not symmetric if isinstance(symmetric, bool) else symmetric
        return checked_scheme(bits, config.get("group_size", 128), zero_point, skipped, where)

    def check(self, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme) -> tuple[int, int]:
        """Return (N, K).

        Raises:
            CheckpointError: if shapes or dtypes disagree with each other or with the scheme.
        """
        qweight, qzeros, scales = (infos[suffix] for suffix in ("qweight", "qzeros", "scales"))
        if any(len(info.shape) != 2 for info in (qweight, qzeros, scales)):
            raise CheckpointError("a packed tensor is not a matrix", why=shapes_of(infos))
        if qweight.dtype != "int32" or qzeros.dtype != "int32" or scales.dtype not in FLOATS:
            raise CheckpointError("a packed tensor has the wrong dtype", why=shapes_of(infos))
        groups, outputs = scales.shape
        features = groups * scheme.group_size
        streams = (features * scheme.bits, outputs * scheme.bits)
        needed = ((streams[0] // 32, outputs), (groups, streams[1] // 32))
        if any(bits % 32 for bits in streams) or (qweight.shape, qzeros.shape) != needed:
            raise CheckpointError(
                f"the shapes do not fit each other, {scheme.bits} bits and group_size {scheme.group_size}",
                why=shapes_of(infos),
            )
        return outputs, features

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Return the linear.

        Raises:
            CheckpointError: if a scale is not finite and > 0, or a zero point is not in the middle though the
                scheme is symmetric.
            UnsupportedError: for a zero point on which readers of these files disagree.
        """
        scales = np.ascontiguousarray(exact_float16(arrays["scales"], "scales").T)
        outputs, groups = scales.shape
        stored = unpack_bits(arrays["qzeros"], scheme.bits, outputs)
        highest = (1 << scheme.bits) - 1
        if self.zero_point_offset and (stored == highest).any():
            raise UnsupportedError(
                "a zero point that readers of GPTQ files take differently",
                why=f"{highest} is stored minus one: {highest + 1} does not fit {scheme.bits} bits, and 0 is "
                "what other readers make of it",
                fix="take a checkpoint in the gptq_v2 format, or quantize the original model with this tool",
            )
        zeros = stored + np.uint8(self.zero_point_offset)
        middle = 1 << (scheme.bits - 1)
        if not scheme.zero_point and (zeros != middle).any():
            raise CheckpointError(
                "zero points contradict quantization_config",
                why=f"sym is true, so each must be {middle}; found {int(zeros[zeros != middle][0])}",
                fix="is checkpoint_format right? gptq stores zero points minus one, gptq_v2 as they are",
            )
        words = np.ascontiguousarray(arrays["qweight"].T)
        return QuantizedWeight(
            q=unpack_bits(words, scheme.bits, groups * scheme.group_size),
            scales=scales,
            zeros=np.ascontiguousarray(zeros.T),
            bits=scheme.bits,
            group_size=scheme.group_size,
        )
