"""The search for a narrower range per group: rounding weights off costs less than a coarse step.

The error of a group of weights w on its own inputs X is |X (w' - w)|^2 = d' (X'X) d. With the g x g moments
X'X at hand no activation is touched, and the choices are those of the search on stored activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from awq_tvm.quantize.group_quantize import Rounding, group_range, round_trip_groups, some_rows

Limits = tuple[Tensor, Tensor]

# The paper's grid is 1.00, 0.95 .. 0.55.
_RATIOS = tuple(1.0 - 0.05 * step for step in range(10))
# Weights worked on at once; a handful of temporaries of this size, 4 bytes each, are alive.
_WEIGHTS_AT_ONCE = 1 << 20


def search_two_sided(weight: Tensor, moments: Tensor, rounding: Rounding) -> Limits:
    """Shrink both ends of each group's range together, then each by itself.

    What decides is the error on the group's own inputs.

    Args:
        weight: float32 [N, K], scales applied.
        moments: float32 [G, g, g], X'X of each group's inputs, scales applied; any positive factor.
        rounding: bits and group size.

    Returns:
        low <= 0 and high >= 0, float32 [N, G].
    """

    def search(groups: Tensor) -> Limits:
        low, high = group_range(groups)
        best_low, best_high = low.clone(), high.clone()
        error = _error(groups, low, high, moments, rounding)
        for sides in ((True, True), (True, False), (False, True)):
            start_low, start_high = best_low.clone(), best_high.clone()
            for ratio in _RATIOS[1:]:
                new_low = low * ratio if sides[0] else start_low
                new_high = high * ratio if sides[1] else start_high
                error = _keep_better(
                    groups, (new_low, new_high), (best_low, best_high), error, moments, rounding
                )
        return best_low, best_high

    return _by_rows(weight, moments, search)


def search_paper(weight: Tensor, moments: Tensor, rounding: Rounding) -> Limits:
    """Clamp each group to plus and minus a part of its largest magnitude, as the paper does.

    Args and returns as in `search_two_sided`.
    """

    def search(groups: Tensor) -> Limits:
        low, high = group_range(groups)
        largest = torch.maximum(-low, high)
        best_low, best_high = low.clone(), high.clone()
        error = _error(groups, low, high, moments, rounding)
        for ratio in _RATIOS[1:]:
            new = (torch.maximum(low, -largest * ratio), torch.minimum(high, largest * ratio))
            error = _keep_better(groups, new, (best_low, best_high), error, moments, rounding)
        return best_low, best_high

    return _by_rows(weight, moments, search)


def count_outside(weight: Tensor, limits: Limits) -> int:
    """How many weights lie outside the ranges of their groups.

    Args:
        weight: float32 [N, K].
        limits: float32 [N, G].
    """
    low, high = (limit.unsqueeze(-1) for limit in limits)
    groups = weight.view(weight.shape[0], low.shape[1], -1)
    return sum(
        int(((groups[some] < low[some]) | (groups[some] > high[some])).sum())
        for some in some_rows(*weight.shape)
    )


def _keep_better(
    groups: Tensor, new: Limits, best: Limits, error: Tensor, moments: Tensor, rounding: Rounding
) -> Tensor:
    """Write the new limits over the best ones where they err less; return the smaller errors."""
    new_error = _error(groups, *new, moments, rounding)
    better = new_error < error
    for target, source in zip(best, new, strict=True):
        target.copy_(torch.where(better, source, target))
    return torch.where(better, new_error, error)


def _error(groups: Tensor, low: Tensor, high: Tensor, moments: Tensor, rounding: Rounding) -> Tensor:
    """The error d' M d of every group: float32 [G, N, g] -> [G, N]."""
    change = round_trip_groups(groups, low, high, rounding.levels, rounding.symmetric).sub_(groups)
    return torch.linalg.vecdot(torch.bmm(change, moments), change)


def _by_rows(weight: Tensor, moments: Tensor, search: Callable[[Tensor], Limits]) -> Limits:
    """Search some rows at a time, groups first so that each meets its moments in one product."""
    found: list[Limits] = []
    for rows in weight.split(max(1, _WEIGHTS_AT_ONCE // weight.shape[1])):
        groups = rows.view(rows.shape[0], moments.shape[0], -1).transpose(0, 1).contiguous()
        found.append(search(groups))
    low, high = (torch.cat([limits[side] for limits in found], dim=1).T.contiguous() for side in (0, 1))
    return low, high
