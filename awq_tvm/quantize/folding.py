"""Scales moved into the layer before.

The inputs of linears are divided by s where they are made; the linears' columns are multiplied by s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from awq_tvm.quantize.device import placed


def absorb_into_norm(norm_weight: Tensor, scales: Tensor, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Divide a norm's weight by scales, and correct the scales for what float16 makes of the quotient.

    With the corrected scales the product of norm and linears is what it was, whatever the rounding. A
    channel whose weight is zero, or whose quotient float16 cannot hold, keeps scale 1 as far as that is
    possible.

    Args:
        norm_weight: float32 [K].
        scales: float32 [K], > 0.
        offset: what the norm adds to its weight before it multiplies: 1 in Gemma, else 0.

    Returns:
        The divided weight, float16 [K], and the corrected scales, float32 [K], finite, > 0.
    """
    factor = norm_weight + offset
    divided = (factor / scales - offset).half()
    lost = ~torch.isfinite(divided) | (divided.float() + offset == 0)
    divided = torch.where(lost, norm_weight.half(), divided)
    corrected = factor / (divided.float() + offset)
    usable = torch.isfinite(corrected) & (corrected > 0)
    return divided, torch.where(usable, corrected, torch.ones_like(scales))


def rows_are_shared(rows: Sequence[int]) -> bool:
    """Whether several input channels come from one row of the feeder, as in grouped-query attention."""
    return len(set(rows)) < len(rows)


def mean_over_shared_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Give channels that come from one row of the feeder their mean.

    Args:
        values: float32 [K].
        rows: for each channel, its row.

    Returns:
        float32 [K].
    """
    index = placed(np.asarray(rows))
    size = int(index.max()) + 1
    total = torch.zeros(size).index_add_(0, index, values)
    count = torch.zeros(size).index_add_(0, index, torch.ones_like(values))
    return (total / count.clamp(min=1))[index]


def scales_of_rows(scales: Tensor, rows: Sequence[int], count: int) -> Tensor:
    """Give each row of the feeder the scale of the channels it makes; rows that make none get 1.

    Args:
        scales: float32 [K], the same for channels of one row.
        rows: for each channel, its row.
        count: rows of the feeder.

    Returns:
        float32 [count].
    """
    of_rows = torch.ones(count)
    of_rows[placed(np.asarray(rows))] = scales
    return of_rows
