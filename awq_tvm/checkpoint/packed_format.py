"""What a way of storing quantized linears must offer; `formats` lists those there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from awq_tvm.checkpoint.base import (
    PER_CHANNEL,
    QuantizationScheme,
    QuantizedWeight,
    TensorInfo,
    scheme_problem,
)
from awq_tvm.errors import CheckpointError, UnsupportedError

FLOATS = ("float16", "bfloat16", "float32")  # what scales are stored as


class PackedFormat(Protocol):
    """Unpacks one linear; knows its section of config.json and its tensor names.

    A linear "x" is stored as tensors "x.<suffix>".
    """

    @property
    def name(self) -> str:
        """The `Checkpoint.format`."""

    @property
    def marker(self) -> str:
        """The suffix that every quantized linear has and nothing else has."""

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the suffixes of all tensors of a linear."""

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config; CheckpointError if it lies, UnsupportedError for another variant."""

    def check(self, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme) -> tuple[int, int]:
        """Return (N, K) from the infos of all suffixes; CheckpointError if they disagree."""

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Return the linear that the arrays of all suffixes hold, every value exactly, its groups in order."""


class WritableFormat(PackedFormat, Protocol):
    """A format that is written too."""

    def refuses(self, scheme: QuantizationScheme) -> str | None:
        """Say why no weight of such a scheme can be stored, or None."""

    def misfit(self, outputs: int, features: int) -> str | None:
        """Say why a linear [outputs, features] cannot be stored, or None."""

    def describe(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """Return the quantization_config that `parse_scheme` and other tools read."""

    def pack(self, weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, NDArray[Any]]:
        """Return suffix -> array; CheckpointError if the weight does not fit the scheme or the format."""


def awq_version(section: Mapping[str, Any]) -> str:
    """Return the layout that an AutoAWQ quantization_config names, in lower case."""
    version = str(section.get("version", section.get("format", "gemm"))).lower()
    # llm-awq's own converter writes its second layout under AutoAWQ's name of another one.
    return "llm-awq" if version == "gemv" and section.get("backend") == "llm-awq" else version


def parse_awq_section(config: Mapping[str, Any], version: str, where: str) -> QuantizationScheme:
    """Read AutoAWQ's quantization_config, by its newer or older names.

    Raises:
        CheckpointError: if a value is out of range.
        UnsupportedError: for another layout than `version`, or other than 4 bits.
    """
    found = awq_version(config)
    if found != version:
        raise UnsupportedError(
            f"AWQ weights in the {found!r} layout",
            where=where,
            why="layouts read: gemm, gemv, gemv_fast, and llm-awq's",
            fix="take a gemm version of the checkpoint, or quantize the original model with this tool",
        )
    scheme = checked_scheme(
        config.get("bits", config.get("w_bit", 4)),
        config.get("group_size", config.get("q_group_size", 128)),
        config.get("zero_point", True),
        config.get("modules_to_not_convert") or [],
        where,
    )
    if scheme.bits != 4:
        raise UnsupportedError(
            f"AWQ {version} weights of {scheme.bits} bits", where=where, why="the layout is for 4 bits"
        )
    return scheme


def refuses_as_awq(scheme: QuantizationScheme) -> str | None:
    """Say why AutoAWQ's layouts cannot store a scheme, or None."""
    if scheme.bits != 4:
        return f"bits is {scheme.bits}; AutoAWQ's layouts are for 4 bits"
    if scheme.act_order:
        return "AutoAWQ's layouts have the channels of a group side by side, and no g_idx"
    if scheme.exceptions or scheme.group_size == PER_CHANNEL:
        return "AutoAWQ's layouts have one group size and one bit width for the linears, and nothing else"
    return None if scheme.zero_point else "AutoAWQ's layouts always have zero points"


def describe_as_awq(scheme: QuantizationScheme, layout: Mapping[str, str]) -> dict[str, Any]:
    """Return quantization_config as AutoAWQ writes it."""
    return {
        "quant_method": "awq",
        **layout,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "modules_to_not_convert": list(scheme.modules_to_not_convert) or None,
    }


def shapes_of(infos: Mapping[str, TensorInfo]) -> str:
    """Return the dtype and shape of every tensor, for a message."""
    return ", ".join(f"{suffix} {info.dtype} {list(info.shape)}" for suffix, info in infos.items())


def checked_scheme(
    bits: object, group_size: object, zero_point: object, skipped: object, where: str
) -> QuantizationScheme:
    """Make a scheme of what a config.json says.

    Raises:
        CheckpointError: if a value is of the wrong type or out of range.
    """
    problem = scheme_problem(bits, group_size)
    if problem is None and not isinstance(zero_point, bool):
        problem = f"zero_point is {zero_point!r:.80}; it must be true or false"
    if problem is None and not (isinstance(skipped, list) and all(isinstance(item, str) for item in skipped)):
        problem = f"the list of modules not to convert is {skipped!r:.80}"
    if problem is not None:
        raise CheckpointError("quantization_config makes no sense", where=where, why=problem)
    return QuantizationScheme(
        cast(int, bits), cast(int, group_size), cast(bool, zero_point), tuple(cast(list[str], skipped))
    )


def exact_float16(scales: NDArray[Any], suffix: str) -> NDArray[Any]:
    """Return scales as float16.

    Raises:
        CheckpointError: if that would change a value.
    """
    half = scales.astype("float16")
    if half.dtype != scales.dtype and not (half.astype(scales.dtype) == scales).all():
        raise CheckpointError(
            "scales do not fit float16",
            why=f"{suffix} is {scales.dtype} and holds values that float16 rounds",
        )
    return half
