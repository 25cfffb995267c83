"""Integer quantization of groups: W[n, k] ~ (q[n, k] - z[n, g]) * s[n, g], g = k // group_size.

Asymmetric groups have a zero point of their own; in symmetric ones it is 2 ** (bits - 1). The range of a group
always contains zero, so an exact zero stays exactly zero. Scales are rounded to float16 *before* q is chosen,
so the error that a search sees is the error on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from awq_tvm.checkpoint import PER_CHANNEL
from awq_tvm.errors import UsageError

GROUP_SIZES = (128, 64, 32)
BITS = tuple(range(2, 9))

LARGEST_HALF = 65504.0
SMALLEST_HALF = 2.0**-24
# Weights worked on at once, where what is made of them on the way would be as large as the weight.
_WEIGHTS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Rounding:
    """How many bits a weight has and how many neighbours share a scale.

    Attributes:
        bits: 2 to 8.
        group_size: inputs in a group, or PER_CHANNEL for all of a row.
        symmetric: every zero point is 2 ** (bits - 1).
    """

    bits: int
    group_size: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            UsageError: bits or group size outside what is legal.
        """
        if self.bits not in BITS:
            raise UsageError(
                f"{self.bits} bits a weight are not possible",
                where="--bits",
                why=f"legal are {', '.join(map(str, BITS))}",
                fix="--bits 4",
            )
        if self.group_size != PER_CHANNEL and self.group_size not in GROUP_SIZES:
            raise UsageError(
                f"A group of {self.group_size} weights is not possible",
                where="--group-size",
                why="legal are 32, 64, 128, -1 (one group a row) and auto",
                fix="--group-size auto",
            )

    @property
    def levels(self) -> int:
        """The largest q."""
        return (1 << self.bits) - 1

    def width(self, in_features: int) -> int:
        """Inputs in a group of a row of `in_features`."""
        return in_features if self.group_size == PER_CHANNEL else self.group_size


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized weight in PyTorch.

    Attributes:
        q: uint8 [N, K].
        scales: float16 [N, G], finite, > 0.
        zeros: uint8 [N, G].
    """

    q: Tensor
    scales: Tensor
    zeros: Tensor

    def dequantize(self) -> Tensor:
        """The weights that q stands for, float32 [N, K]."""
        rows, groups = self.scales.shape
        q = self.q.view(rows, groups, -1).to(torch.float32)
        # In place: these are the largest tensors there are.
        return q.sub_(self.zeros.unsqueeze(-1)).mul_(self.scales.float().unsqueeze(-1)).view(rows, -1)


def choose_group_size(requested: str | int, in_features: Mapping[str, int]) -> int:
    """Settle the group size before any work is done.

    Args:
        requested: "auto" for the largest of 128, 64 and 32 that divides every K, or a number.
        in_features: K of every linear that will be quantized, by name.

    Returns:
        A divisor of every K, or PER_CHANNEL.

    Raises:
        UsageError: not a legal size, or one that does not divide every K; the legal ones are listed.
    """
    legal = [size for size in GROUP_SIZES if all(width % size == 0 for width in in_features.values())]
    legal.append(PER_CHANNEL)
    size = legal[0] if requested == "auto" and len(legal) > 1 else _parse(requested)
    if size in legal:
        return size
    Rounding(4, size)
    name, width = next((name, width) for name, width in in_features.items() if width % size)
    raise UsageError(
        f"Groups of {size} do not fit every linear of this model",
        where=name,
        why=f"it has {width} inputs; sizes that fit all linears: {', '.join(map(str, legal))}",
        fix=f"--group-size {legal[0]}",
    )


def _parse(requested: str | int) -> int:
    try:
        return GROUP_SIZES[-1] if requested == "auto" else int(requested)
    except ValueError:
        raise UsageError(
            f"The group size {requested!r} is not a number",
            where="--group-size",
            why="legal are 32, 64, 128, -1 (one group a row) and auto",
            fix="--group-size auto",
        ) from None


def group_range(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group, stretched to contain zero.

    Args:
        groups: [..., g], of any float type.

    Returns:
        low <= 0 and high >= 0, float32 [...].
    """
    low, high = torch.aminmax(groups, dim=-1)
    return low.float().clamp(max=0.0), high.float().clamp(min=0.0)


def scales_and_zeros(
    low: Tensor, high: Tensor, levels: int, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """The step and the zero point that span [low, high].

    Asymmetric, the ends are levels. Symmetric, the step is the smallest by which nothing in the range is off
    by more than half of it: below 8 bits that errs less on average than ends that are met. A group of zeros
    gets step 1; a step that float16 cannot hold is held at its largest or smallest positive value, so that
    the result stays finite.

    Args:
        low: float32 [...], <= 0.
        high: float32 [...], >= 0.
        levels: the largest q.
        symmetric: zeros are all 2 ** (bits - 1), the upper of the two middle levels.

    Returns:
        float32 tensors of the same shape: scales (each a float16 value, finite, > 0), zeros (integers
        0..levels).
    """
    # Divided before they are subtracted: high - low of huge weights overflows float32.
    step = (
        torch.maximum(high / (levels / 2), -low / (levels / 2 + 1))
        if symmetric
        else high / levels - low / levels
    )
    scales = step.clamp(SMALLEST_HALF, LARGEST_HALF).half().float()
    scales = torch.where(step > 0, scales, torch.ones_like(scales))
    if symmetric:
        return scales, torch.full_like(scales, (levels + 1) // 2)
    zeros = torch.round(-low / scales).clamp_(0, levels)
    return scales, zeros


def round_groups(groups: Tensor, scales: Tensor, zeros: Tensor, levels: int) -> Tensor:
    """Nearest q of each weight.

    Args:
        groups: float32 [..., g].
        scales: float32 [...].
        zeros: float32 [...].
        levels: the largest q.

    Returns:
        Integers 0..levels as float32 [..., g].
    """
    q = torch.div(groups, scales.unsqueeze(-1)).round_()
    return q.add_(zeros.unsqueeze(-1)).clamp_(0, levels)


def round_trip_groups(
    groups: Tensor, low: Tensor, high: Tensor, levels: int, symmetric: bool = False
) -> Tensor:
    """What groups of weights become when quantized over the range [low, high], float32 [..., g]."""
    scales, zeros = scales_and_zeros(low, high, levels, symmetric)
    q = round_groups(groups, scales, zeros, levels)
    return q.sub_(zeros.unsqueeze(-1)).mul_(scales.unsqueeze(-1))


def round_trip(weight: Tensor, rounding: Rounding, scales: Tensor | None = None) -> Tensor:
    """What a weight becomes by rounding to nearest, for the input as it is without scales.

    Args:
        weight: [N, K], of any float type.
        rounding: bits, group size, which divides K, and symmetry.
        scales: what the columns are multiplied by before they are rounded, float32 [K], > 0; None for nothing.

    Returns:
        float32 [N, K], divided by the scales again.
    """
    rows, width = weight.shape
    result = torch.empty_like(weight, dtype=torch.float32)
    for some in some_rows(rows, width):
        part = weight[some].float() if scales is None else weight[some] * scales
        groups = part.view(part.shape[0], -1, rounding.width(width))
        rounded = round_trip_groups(groups, *group_range(groups), rounding.levels, rounding.symmetric)
        result[some] = rounded.view_as(part) if scales is None else rounded.view_as(part).div_(scales)
    return result


def some_rows(rows: int, width: int) -> Iterator[slice]:
    """Some rows of a matrix [rows, width] at a time, so that what is made of them on the way stays small."""
    count = max(1, _WEIGHTS_AT_ONCE // width)
    return (slice(start, start + count) for start in range(0, rows, count))


def quantize(weight: Tensor, rounding: Rounding, limits: tuple[Tensor, Tensor] | None = None) -> Quantized:
    """Quantize a weight by rounding to nearest.

    Args:
        weight: [N, K], of any float type.
        rounding: bits, group size, which divides K, and symmetry.
        limits: the range of each group, low <= 0 and high >= 0, float32 [N, G]; the group's own where None.

    Returns:
        The quantized weight; nothing in it is NaN or infinite.
    """
    rows, width = weight.shape
    groups = weight.view(rows, -1, rounding.width(width))
    low, high = limits if limits is not None else group_range(groups)
    scales, zeros = scales_and_zeros(low, high, rounding.levels, rounding.symmetric)
    q = torch.empty(rows, width, dtype=torch.uint8)
    for some in some_rows(rows, width):
        part = groups[some].float()
        q[some] = round_groups(part, scales[some], zeros[some], rounding.levels).view(-1, width)
    return Quantized(q, scales.half(), zeros.to(torch.uint8))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
