"""Can a scheme be applied to a model at all? Answered from the config, before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from awq_tvm.checkpoint.base import PER_CHANNEL, QuantizationScheme
from awq_tvm.checkpoint.expected_tensors import expected_tensors
from awq_tvm.checkpoint.formats import AUTO, format_to_write
from awq_tvm.errors import UsageError


def linears_to_quantize(config: Mapping[str, Any], skipped: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Return name -> (N, K) of the linears inside the layers; empty for a model_type without a table.

    Args:
        config: as `Checkpoint.config`.
        skipped: modules_to_not_convert: full names, last parts of names ("down_proj") or prefixes.
    """
    return {
        name: (shape[0], shape[1])
        for name, shape in ((key.removesuffix(".weight"), value) for key, value in _matrices(config).items())
        if name.startswith("model.layers.") and not is_skipped(name, skipped)
    }


def is_skipped(name: str, skipped: Sequence[str]) -> bool:
    """True if a linear is named by modules_to_not_convert."""
    return any(name == item or name.endswith(f".{item}") or name.startswith(f"{item}.") for item in skipped)


def check_scheme_fits(config: Mapping[str, Any], scheme: QuantizationScheme, format: str = AUTO) -> None:
    """Refuse a scheme that some linear of the model cannot have.

    Args:
        config: as `Checkpoint.config`.
        scheme: what every linear inside the layers would have, and what its exceptions name.
        format: how it would be stored, as for `write_quantized_checkpoint`.

    Raises:
        UsageError: listing the linears and the group sizes that would work; if the format cannot store it.
    """
    check_linears_fit(_to_quantize(config, scheme), scheme, format)


def check_linears_fit(
    linears: Mapping[str, tuple[int, int]], scheme: QuantizationScheme, format: str = AUTO
) -> None:
    """Refuse a scheme that one of some linears cannot have.

    Args:
        linears: name -> (N, K) of all that would be quantized.
        scheme: what they would have.
        format: how it would be stored, as for `write_quantized_checkpoint`.

    Raises:
        UsageError: as `check_scheme_fits`.
    """
    packed = format_to_write(format, scheme)
    divisor = math.gcd(*(features for _, features in linears.values()))
    bad = [
        f"{name} has in_features {features}"
        for name, (_, features) in linears.items()
        if features % scheme.of(name).width(features)
    ]
    if bad:
        legal = [size for size in (16, 32, 64, 128, 256) if divisor % size == 0] or [divisor]
        raise UsageError(
            f"group_size {scheme.group_size} does not divide every in_features",
            where="--group-size",
            why=f"{len(bad)} of {len(linears)} linears: {'; '.join(bad[:3])}",
            fix=f"use one of {', '.join(map(str, legal))}",
        )
    problems = ((name, packed.misfit(*shape)) for name, shape in linears.items())
    bad = [f"{name}: {problem}" for name, problem in problems if problem]
    bad += [
        f"{name}: rows of {features} values of {one.bits} bits do not fill whole words of 32"
        for name, (_, features) in linears.items()
        if (one := scheme.of(name)).group_size == PER_CHANNEL and features * one.bits % 32
    ]
    if bad:
        raise UsageError(
            f"the format {packed.name!r} cannot store every linear",
            where="--bits",
            why=f"{len(bad)} of {len(linears)} linears: {'; '.join(bad[:3])}",
            fix="use another bit width or format, or leave these linears dense (modules_to_not_convert)",
        )


def least_bytes(config: Mapping[str, Any], scheme: QuantizationScheme) -> int:
    """Return a lower bound of the bytes on disk when quantized; 0 for a model_type without a table."""
    linears = _to_quantize(config, scheme)
    total = sum(
        outputs * (features * scheme.of(name).bits // 8 + features // scheme.of(name).width(features) * 2)
        for name, (outputs, features) in linears.items()
    )
    dense = (
        math.prod(shape)
        for name, shape in _matrices(config).items()
        if name.removesuffix(".weight") not in linears
    )
    return total + 2 * sum(dense)


def _to_quantize(config: Mapping[str, Any], scheme: QuantizationScheme) -> dict[str, tuple[int, int]]:
    """The linears inside the layers, and the embedding and the head where exceptions name them."""
    named = {
        name: (shape[0], shape[1])
        for name, shape in ((key.removesuffix(".weight"), value) for key, value in _matrices(config).items())
        if name in scheme.exceptions
    }
    return {**linears_to_quantize(config, scheme.modules_to_not_convert), **named}


def _matrices(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in (expected_tensors(config) or {}).items() if len(shape) == 2}
