"""g_idx: which group each input channel belongs to, where a checkpoint says so.

A weight that was quantized in activation order has groups of channels that are not neighbours. Every group has the
same number of channels all the same, so that the columns can be put side by side: `columns_by_group`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.errors import CheckpointError

COMPRESSED_TENSORS_ORDER = "weight_g_idx"
ORDER_SUFFIXES = {"gptq": "g_idx", "compressed-tensors": COMPRESSED_TENSORS_ORDER}  # by `Checkpoint.format`


def read_group_order(
    order: NDArray[Any], features: int, group_size: int, where: str
) -> NDArray[np.int32] | None:
    """Return the group of each channel, or None where the groups lie in order, side by side.

    Args:
        order: integers [features], as stored.
        features: K of the linear.
        group_size: channels in a group.
        where: named in errors.

    Returns: int32 [features], or None.

    Raises:
        CheckpointError: if it cannot be a list of groups of this linear.
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
    found = order.astype(np.int32)
    if problem := order_problem(found, features, group_size):
        raise CheckpointError("g_idx makes groups of other sizes", where=where, why=problem)
    return None if (found == in_order(features, group_size)).all() else found


def order_problem(order: NDArray[np.int32], features: int, group_size: int) -> str | None:
    """Say why `order` is no list of the groups of `features` channels, or None if it is one."""
    groups = features // group_size
    if order.dtype != np.int32 or order.shape != (features,):
        return f"the groups are {order.dtype} {list(order.shape)}; needed: int32 [{features}]"
    if order.size and not 0 <= order.min() <= order.max() < groups:
        return f"a channel is in group {int(order.min())} or {int(order.max())} of {groups}"
    sizes = np.bincount(order, minlength=groups)
    wrong = np.flatnonzero(sizes != group_size)
    if wrong.size:
        return f"group {int(wrong[0])} has {int(sizes[wrong[0]])} channels; needed: {group_size} in each"
    return None


def in_order(features: int, group_size: int) -> NDArray[np.int32]:
    """Return the group of each channel where groups are of neighbours: int32 [features]."""
    return np.arange(features, dtype=np.int32) // np.int32(group_size)


def columns_by_group(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the columns, group by group, and within a group as they come: int32 [features]."""
    return np.argsort(order, kind="stable").astype(np.int32)
