"""Inner channels of zeros for MLPs whose width no group size divides.

No format stores a row whose last group is short, but every format stores a model that is a little wider: a channel
whose gate, up and down weights are zero gives 0 for any input, with each activation function of the known families.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.checkpoint.expected_tensors import expected_tensors
from awq_tvm.quantize.group_quantize import GROUP_SIZES

_INNER = "intermediate_size"
_OF_INNER_WIDTH = ".down_proj.weight"


def pad_inner_width(checkpoint: Checkpoint, group_size: str | int) -> Checkpoint:
    """Widen the MLPs of a model by zeros where only they keep a group size from fitting.

    Args:
        checkpoint: dense.
        group_size: "auto" or a number, as `quantize_checkpoint` takes it.

    Returns:
        A view with a larger `intermediate_size`; or the checkpoint itself, where groups fit already, where padding
        does not help, or where it is not known which tensors have the width.
    """
    shapes = expected_tensors(checkpoint.config)
    if shapes is None:
        return checkpoint
    inputs = {
        shape[1]
        for name, shape in shapes.items()
        if name.startswith("model.layers.") and len(shape) == 2 and not name.endswith(_OF_INNER_WIDTH)
    }
    width = checkpoint.config[_INNER]
    padded = _padded(width, inputs, group_size)
    if padded == width:
        return checkpoint
    config = {**checkpoint.config, _INNER: padded}
    wider = expected_tensors(config) or {}
    changed = {name: shape for name, shape in wider.items() if shape != shapes[name]}

    def load(name: str) -> npt.NDArray[Any]:
        values = checkpoint.load_dense(name)
        if name not in changed:
            return values
        return np.pad(values, [(0, new - old) for new, old in zip(changed[name], values.shape, strict=True)])

    tensors = {
        name: replace(info, shape=changed.get(name, info.shape)) for name, info in checkpoint.tensors.items()
    }
    return replace(checkpoint, config=config, tensors=tensors, load_dense=load)


def _padded(width: int, others: Collection[int], group_size: str | int) -> int:
    """The least inner width from `width` on that fits the group size; `width` itself where other inputs do not."""
    fitting = [size for size in GROUP_SIZES if all(inputs % size == 0 for inputs in others)]
    if group_size == "auto":
        wanted = next((size for size in fitting if width % size == 0), fitting[0] if fitting else 1)
    else:
        wanted = int(group_size) if group_size in (*fitting, *map(str, fitting)) else 1
    return -(-width // wanted) * wanted


def padding_note(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """What to tell about two configs, the file's and the one that is worked with: nothing if they are as wide."""
    old, new = before.get(_INNER), after.get(_INNER)
    return (
        () if old == new else (f"MLPs were widened from {old} to {new} channels by zeros, for groups to fit",)
    )
