"""Which bit width each linear gets, so that the model loses least within a budget of bits a weight.

Each set of linears that read the same input has one width, as programs that stack them need it. What a width
costs the model was measured (`sensitivity`), and the costs of all sets are taken to add up. Of the widths of a
set those on the lower convex hull of (size, loss) are worth having; taking the steps along all hulls in the
order of loss saved per bit is the best there is for every budget that it meets exactly (Shoham and Gersho,
1988), and what is left of a budget goes to the next best steps that still fit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from awq_tvm.errors import UsageError
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.rounding_plan import RoundingPlan

WIDTHS = (2, 3, 4, 8)
"""The widths to choose from: those that compiled models have kernels for."""

_AUTO = "auto:"
_SCALE_BITS = 16


@dataclass(frozen=True)
class Sensitivity:
    """What the widths of some linears that share one cost the model.

    Attributes:
        linears: full names.
        weights: how many they have together.
        scales: how many scales they have together.
        losses: by width, in any unit that is the same for the whole model; finite, >= 0.
    """

    linears: tuple[str, ...]
    weights: int
    scales: int
    losses: Mapping[int, float]

    def size(self, bits: int, *, symmetric: bool) -> int:
        """Bits on disk: codes, scales and zero points."""
        return self.weights * bits + self.scales * (_SCALE_BITS + (0 if symmetric else bits))


def parse_budget(bits: int | str) -> float | None:
    """Read "auto:BITS".

    Returns:
        The budget in bits a weight, or None where `bits` is a number, the width of all linears.

    Raises:
        UsageError: it is neither.
    """
    text = str(bits)
    try:
        if not text.startswith(_AUTO):
            int(text)
            return None
        budget = float(text.removeprefix(_AUTO))
    except ValueError:
        budget = math.nan
    if not math.isfinite(budget):
        raise UsageError(
            f"--bits {text[:80]!r} is neither a width nor a budget",
            where="--bits",
            why="needed a whole number from 2 to 8, or auto: and the bits a weight may take on average",
            fix="--bits auto:3.5",
        )
    return budget


def allocate(sensitivities: Sequence[Sensitivity], budget: float, *, symmetric: bool) -> dict[str, int]:
    """Choose a width for every linear.

    Args:
        sensitivities: of all linears that are quantized.
        budget: bits a weight, on average, with the share of scales and zero points.
        symmetric: no zero points are stored.

    Returns:
        Bits by full name. The same arguments give the same answer, and the sum of the losses is at most that of
        any single width for all that fits.

    Raises:
        UsageError: not even the smallest width for all fits.
    """
    sizes = [{bits: one.size(bits, symmetric=symmetric) for bits in one.losses} for one in sensitivities]
    room = budget * sum(one.weights for one in sensitivities)

    def total(chosen: Sequence[int]) -> int:
        return sum(size[bits] for size, bits in zip(sizes, chosen, strict=True))

    def loss(chosen: Sequence[int]) -> float:
        return math.fsum(one.losses[bits] for one, bits in zip(sensitivities, chosen, strict=True))

    uniform = [[bits] * len(sensitivities) for bits in WIDTHS]
    if total(uniform[0]) > room:
        least = total(uniform[0]) / sum(one.weights for one in sensitivities)
        raise UsageError(
            f"{budget:g} bits a weight are too few",
            where="--bits",
            why=f"{WIDTHS[0]} bits take {least:.4g} with scales and zero points",
            fix=f"--bits auto:{math.ceil(least * 100) / 100:g}, or larger groups",
        )
    steps = []
    for index, (one, size) in enumerate(zip(sensitivities, sizes, strict=True)):
        hull = _lower_hull([(size[bits], one.losses[bits], bits) for bits in sorted(size)])
        for (small, high, _), (large, low, bits) in pairwise(hull):
            steps.append(((low - high) / (large - small), index, bits))
    chosen, left, stuck = list(uniform[0]), room - total(uniform[0]), set()
    for _, index, bits in sorted(steps):
        cost = sizes[index][bits] - sizes[index][chosen[index]]
        # A set that could not take a step must not skip it.
        if cost > left or index in stuck:
            stuck.add(index)
            continue
        chosen[index], left = bits, left - cost
    best = min([chosen, *(one for one in uniform if total(one) <= room)], key=loss)
    return {name: bits for one, bits in zip(sensitivities, best, strict=True) for name in one.linears}


def _lower_hull(points: Sequence[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """The points (size, loss, bits), by size, that some price of a bit makes the best; losses fall along it."""
    hull: list[tuple[int, float, int]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: tuple[int, float, int], right: tuple[int, float, int]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def average_bits(
    sensitivities: Sequence[Sensitivity], widths: Mapping[str, int], *, symmetric: bool
) -> float:
    """Bits a weight on disk, with the share of scales and zero points."""
    size = sum(one.size(widths[one.linears[0]], symmetric=symmetric) for one in sensitivities)
    return size / sum(one.weights for one in sensitivities)


def plan_of(widths: Mapping[str, int], rounding: Rounding) -> RoundingPlan:
    """The widths as a plan: the most frequent is the default.

    Args:
        widths: bits by full name.
        rounding: group size and symmetry of all; its bits do not count.
    """
    by_bits = {
        bits: Rounding(bits, rounding.group_size, rounding.symmetric) for bits in sorted(set(widths.values()))
    }
    most = max(by_bits, key=Counter(widths.values()).__getitem__)
    return RoundingPlan(by_bits[most], {name: by_bits[bits] for name, bits in widths.items() if bits != most})
