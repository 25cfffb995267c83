"""Scales moved into the layer before.

The inputs of linears are divided by s where they are made; the linears' columns are multiplied by s.
"""

from __future__ import annotations

import torch
from torch import Tensor


def absorb_into_norm(norm_weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Divide a norm's weight by scales, and correct the scales for what float16 makes of the quotient.

    With the corrected scales the product of norm and linears is what it was, whatever the rounding. A
    channel whose weight is zero, or whose quotient float16 cannot hold, keeps scale 1 as far as that is
    possible.

    Args:
        norm_weight: float32 [K].
        scales: float32 [K], > 0.

    Returns:
        The divided weight, float16 [K], and the corrected scales, float32 [K], finite, > 0.
    """
    divided = (norm_weight / scales).half()
    lost = ~torch.isfinite(divided) | (divided == 0)
    divided = torch.where(lost, norm_weight.half(), divided)
    corrected = norm_weight / divided.float()
    usable = torch.isfinite(corrected) & (corrected > 0)
    return divided, torch.where(usable, corrected, torch.ones_like(scales))


def head_sharing(in_features: int, feeder_rows: int, head_dim: int) -> int | None:
    """How many heads read each row of a value projection.

    Args:
        in_features: K of the linear that is fed.
        feeder_rows: N of the linear that feeds it.
        head_dim: channels of a head.

    Returns:
        1 where each row feeds one column, r > 1 for grouped-query attention with r heads a group, None where
        the shapes do not allow scales to be moved.
    """
    if in_features == feeder_rows:
        return 1
    if in_features % feeder_rows or feeder_rows % head_dim:
        return None
    return in_features // feeder_rows


def mean_over_sharing_heads(values: Tensor, sharing: int, head_dim: int) -> Tensor:
    """Give channels that come from one row of a value projection their mean: float32 [K] -> [K]."""
    heads = values.view(-1, sharing, head_dim)
    return heads.mean(dim=1, keepdim=True).expand_as(heads).reshape(-1)


def rows_of_feeder(scales: Tensor, sharing: int, head_dim: int) -> Tensor:
    """Pick the scale of each row of the feeder from those of the columns it feeds: [K] -> [K / sharing]."""
    return scales.view(-1, sharing, head_dim)[:, 0].reshape(-1)
