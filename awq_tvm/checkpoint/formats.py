"""The ways of storing quantized linears: which one a config.json names, and which one to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awq_tvm.checkpoint.awq_format import AwqGemm
from awq_tvm.checkpoint.awq_gemv import AwqGemv
from awq_tvm.checkpoint.awq_interleaved import GEMV_FAST, LLM_AWQ
from awq_tvm.checkpoint.base import QuantizationScheme
from awq_tvm.checkpoint.compressed_tensors import PackQuantized
from awq_tvm.checkpoint.gptq import Gptq
from awq_tvm.checkpoint.packed_format import PackedFormat, WritableFormat, awq_version
from awq_tvm.errors import UnsupportedError, UsageError

AUTO = "auto"
WRITABLE: Mapping[str, WritableFormat] = {
    packed.name: packed for packed in (AwqGemm(), LLM_AWQ, GEMV_FAST, PackQuantized())
}


def format_of(section: Mapping[str, Any], where: str) -> PackedFormat:
    """Return the format that a quantization_config names.

    Raises:
        UnsupportedError: for a method that is not read.
    """
    method = section.get("quant_method")
    if method == "awq":
        by_version: dict[str, PackedFormat] = {
            "gemv": AwqGemv(),
            GEMV_FAST.version: GEMV_FAST,
            LLM_AWQ.version: LLM_AWQ,
        }
        return by_version.get(awq_version(section), AwqGemm())  # which refuses every other version
    if method == "gptq":
        return Gptq.of(section, where)
    if method == "compressed-tensors":
        return PackQuantized()
    raise UnsupportedError(
        f"weights quantized with {method!r:.80}",
        where=where,
        why="quant_method must be one of awq, gptq, compressed-tensors",
        fix="take the unquantized model and quantize it with this tool",
    )


def format_to_write(name: str, scheme: QuantizationScheme) -> WritableFormat:
    """Return the format with that name; "auto" is "awq" where it stores the scheme, else compressed-tensors.

    Raises:
        UsageError: if there is none of that name, or it does not store such a scheme.
    """
    if name == AUTO:
        name = "compressed-tensors" if WRITABLE["awq"].refuses(scheme) else "awq"
    if name not in WRITABLE:
        raise UsageError(f"no format {name!r:.80} is written", why=f"known: {', '.join((AUTO, *WRITABLE))}")
    packed = WRITABLE[name]
    if problem := packed.refuses(scheme):
        raise UsageError(
            f"the format {name!r} cannot store this scheme",
            why=problem,
            fix="choose compressed-tensors, which stores them all",
        )
    return packed
