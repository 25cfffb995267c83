"""g_idx: which group each input channel belongs to, where a checkpoint says so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.errors import CheckpointError, UnsupportedError

ORDER_SUFFIXES = ("g_idx", "weight_g_idx")  # as GPTQ and as compressed-tensors name it


def check_group_order(order: NDArray[Any], features: int, group_size: int, where: str) -> None:
    """Accept groups of neighbouring channels in order, which is how every kernel here reads them.

    Args:
        order: integers [features].
        features: K of the linear.
        group_size: channels in a group.
        where: named in errors.

    Raises:
        CheckpointError: if it cannot be a list of groups of this linear.
        UnsupportedError: if groups are scattered: it was quantized in activation order (desc_act).
    """
    groups = features // group_size
    if (
        order.shape != (features,)
        or order.dtype.kind not in "iu"
        or (order < 0).any()
        or (order >= groups).any()
    ):
        raise CheckpointError(
            "g_idx does not give each input channel a group",
            where=where,
            why=f"{order.dtype} {list(order.shape)}; needed: integers [{features}] below {groups}",
        )
    if (order != np.arange(features) // group_size).any():
        raise UnsupportedError(
            "weights quantized in activation order",
            where=where,
            why="groups are scattered (g_idx)",
            fix="take a version without activation order (desc_act: false), or quantize the original model "
            "with this tool",
        )
