"""What a way of storing quantized linears must offer; `awq_format` and `compressed_tensors` are the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from awq_tvm.checkpoint.base import QuantizationScheme, QuantizedWeight, TensorInfo, scheme_problem
from awq_tvm.errors import CheckpointError


class PackedFormat(Protocol):
    """Packs and unpacks one linear; knows its section of config.json and its tensor names.

    A linear "x" is stored as tensors "x.<suffix>".
    """

    @property
    def name(self) -> str:
        """The `Checkpoint.format`, which is also quantization_config.quant_method."""

    @property
    def marker(self) -> str:
        """The suffix that every quantized linear has and nothing else has."""

    def suffixes(self, scheme: QuantizationScheme) -> tuple[str, ...]:
        """Return the suffixes of all tensors of a linear."""

    def parse_scheme(self, config: Mapping[str, Any], where: str) -> QuantizationScheme:
        """Read quantization_config; CheckpointError if it lies, UnsupportedError for another variant."""

    def describe(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """Return the quantization_config that `parse_scheme` and other tools read."""

    def check(self, infos: Mapping[str, TensorInfo], scheme: QuantizationScheme) -> tuple[int, int]:
        """Return (N, K) from the infos of all suffixes; CheckpointError if they disagree."""

    def pack(self, weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, NDArray[Any]]:
        """Return suffix -> array; CheckpointError if the weight does not fit the scheme or the format."""

    def unpack(self, arrays: Mapping[str, NDArray[Any]], scheme: QuantizationScheme) -> QuantizedWeight:
        """Undo `pack`, bit for bit."""


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
