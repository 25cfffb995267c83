"""The matrices with a row for each token, in 8 bits: in small models they are most of what a token reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint import Checkpoint, QuantizationScheme, QuantizedWeight
from awq_tvm.errors import UsageError

BITS = (4, 8, 16)
"""What they may be stored in; 16 leaves them as they are."""

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_GROUP_SIZES = (128, 64, 32)
_ROWS_AT_ONCE = 4096


def round_vocabulary(checkpoint: Checkpoint, bits: int) -> Checkpoint:
    """The same checkpoint, its embedding and head rounded to nearest where it has them unquantized.

    Each group of 128, 64 or 32 inputs, the most that divide K, has a scale and a zero point. A matrix that none of
    these divides stays as it is, and so does what the checkpoint holds quantized.

    Args:
        checkpoint: a decoder's.
        bits: one of ``BITS``.

    Returns:
        A view of the checkpoint: rows are rounded when they are read.

    Raises:
        UsageError: other bits.
    """
    if bits not in BITS:
        raise UsageError(
            f"the embedding and the head cannot be stored in {bits} bits",
            where="--vocabulary-bits",
            why=f"legal are {', '.join(map(str, BITS))}",
            fix="--vocabulary-bits 8",
        )
    schemes = {} if bits == 16 else dict(_schemes(checkpoint, bits))
    if not schemes:
        return checkpoint

    def load(name: str) -> QuantizedWeight:
        if name not in schemes:
            return checkpoint.read_quantized(name)
        return _round(checkpoint.read(f"{name}.weight"), bits, schemes[name].group_size)

    scheme = checkpoint.scheme or next(iter(schemes.values()))
    return replace(
        checkpoint,
        scheme=replace(scheme, exceptions={**scheme.exceptions, **schemes}),
        tensors={
            name: info
            for name, info in checkpoint.tensors.items()
            if name.removesuffix(".weight") not in schemes
        },
        quantized=(*checkpoint.quantized, *schemes),
        load_quantized=load,
    )


def _schemes(checkpoint: Checkpoint, bits: int) -> Iterator[tuple[str, QuantizationScheme]]:
    tied = checkpoint.config.get("tie_word_embeddings", False)
    for name in (_EMBEDDING,) if tied else (_EMBEDDING, _HEAD):
        if (info := checkpoint.tensors.get(f"{name}.weight")) is not None:
            fitting = [size for size in _GROUP_SIZES if info.shape[1] % size == 0]
            if fitting:
                yield name, QuantizationScheme(bits, fitting[0])


def _round(weight: NDArray[Any], bits: int, group_size: int) -> QuantizedWeight:
    """Round W[N, K] to nearest, some rows at a time; the range of a group contains zero."""
    rows, width = weight.shape
    q = np.empty((rows, width), np.uint8)
    scales = np.empty((rows, width // group_size), np.float16)
    zeros = np.empty(scales.shape, np.uint8)
    levels = (1 << bits) - 1
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        groups = weight[some].astype(np.float32).reshape(-1, width // group_size, group_size)
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        # float16 holds neither a step of nothing nor one beyond its range.
        step = ((high - low) / levels).clip(2.0**-24, 65504.0).astype(np.float16)
        exact = step.astype(np.float32)[..., None]
        zero = np.rint(-low / exact[..., 0]).clip(0, levels)
        codes = np.rint(groups / exact) + zero[..., None]
        q[some] = codes.clip(0, levels).reshape(-1, width).astype(np.uint8)
        scales[some], zeros[some] = step, zero.astype(np.uint8)
    return QuantizedWeight(q, scales, zeros, bits, group_size)
