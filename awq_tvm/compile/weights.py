"""Carry out a parameter plan: read, stack, pack and cast the weights of a compiled model, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from awq_tvm.errors import CheckpointError
from awq_tvm.schedules.layout import DENSE_LAYOUTS, LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, OrderSource, ParameterPlan, QuantizedSource
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from awq_tvm.checkpoint import Checkpoint

Array = np.ndarray[Any, Any]


def packed_weights(checkpoint: Checkpoint, plan: ParameterPlan) -> Iterator[tuple[str, Array]]:
    """The compiled model's weights, in the plan's order.

    Args:
        checkpoint: where the plan's tensors and linears are.
        plan: of the module after all passes.

    Yields:
        Name and array of each parameter.

    Raises:
        CheckpointError: a value does not fit the dtype it is stored in.
    """
    packed: dict[QuantizedSource, tuple[Array, ...]] = {}
    for name, source in plan.sources.items():
        if isinstance(source, DenseSource):
            yield name, _dense(checkpoint, source)
            continue
        if isinstance(source, OrderSource):
            yield name, _order(checkpoint, source)
            continue
        # The arrays of one weight follow each other, so one packed weight is kept at a time.
        key = replace(source, array=0)
        if key not in packed:
            packed = {key: _pack(checkpoint, source)}
        yield name, packed[key][source.array]


def _dense(checkpoint: Checkpoint, source: DenseSource) -> Array:
    parts = [checkpoint.read(tensor) for tensor in source.tensors]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(whole.astype(source.dtype))
    if not np.isfinite(cast).all():
        raise CheckpointError(
            f"a weight does not fit in {source.dtype}",
            where=", ".join(source.tensors),
            why=f"its largest magnitude is {float(np.abs(whole.astype(np.float64)).max()):.6g}",
        )
    return cast if source.layout is None else DENSE_LAYOUTS[source.layout].pack(cast)[0]


def _order(checkpoint: Checkpoint, source: OrderSource) -> Array:
    weight = checkpoint.read_quantized(source.module)
    order = weight.side_by_side()[1]
    return np.arange(weight.in_features, dtype=np.int32) if order is None else order


def _pack(checkpoint: Checkpoint, source: QuantizedSource) -> tuple[Array, ...]:
    parts = [checkpoint.read_quantized(module).side_by_side()[0] for module in source.modules]
    q, scales, zeros = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("q", "scales", "zeros")
    )
    if source.halves_in_turn:
        q, scales, zeros = (
            a.reshape(2, len(a) // 2, -1).swapaxes(0, 1).reshape(a.shape) for a in (q, scales, zeros)
        )
    return LAYOUTS[source.layout].pack(MatmulSpec.from_json(source.spec), q, scales, zeros)
