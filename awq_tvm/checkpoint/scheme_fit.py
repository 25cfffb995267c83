"""Can a scheme be applied to a model at all? Answered from the config, before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from awq_tvm.checkpoint.base import QuantizationScheme
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
        scheme: what every linear inside the layers would have.
        format: how it would be stored, as for `write_quantized_checkpoint`.

    Raises:
        UsageError: listing the linears and the group sizes that would work; if the format cannot store it.
    """
    packed = format_to_write(format, scheme)
    linears = linears_to_quantize(config, scheme.modules_to_not_convert)
    divisor = math.gcd(*(features for _, features in linears.values()))
    bad = [
        f"{name} has in_features {features}"
        for name, (_, features) in linears.items()
        if features % scheme.group_size
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
    if bad:
        raise UsageError(
            f"the format {packed.name!r} cannot store every linear",
            where="--bits",
            why=f"{len(bad)} of {len(linears)} linears: {'; '.join(bad[:3])}",
            fix="use another bit width or format, or leave these linears dense (modules_to_not_convert)",
        )


def least_bytes(config: Mapping[str, Any], scheme: QuantizationScheme) -> int:
    """Return a lower bound of the bytes on disk when quantized; 0 for a model_type without a table."""
    linears = linears_to_quantize(config, scheme.modules_to_not_convert)
    per_group = scheme.bits * scheme.group_size // 8 + 2
    total = sum(outputs * features // scheme.group_size * per_group for outputs, features in linears.values())
    dense = (
        math.prod(shape)
        for name, shape in _matrices(config).items()
        if name.removesuffix(".weight") not in linears
    )
    return total + 2 * sum(dense)


def _matrices(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in (expected_tensors(config) or {}).items() if len(shape) == 2}
