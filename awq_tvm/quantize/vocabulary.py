"""The matrices with a row for each token, embedding and head: rounded to nearest where that is asked for."""

from __future__ import annotations

import numpy as np
import torch

from awq_tvm.checkpoint import Checkpoint, QuantizedWeight
from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.quantize.device import placed, taken_back
from awq_tvm.quantize.group_quantize import Rounding, quantize
from awq_tvm.quantize.torch_model import build_skeleton, embedding_path

BITS = (4, 8)
_HEAD = "lm_head"
# Rows that are in memory as float32 at once, and some temporaries of that size.
_ROWS_AT_ONCE = 4096


def roundings_of_vocabulary(
    checkpoint: Checkpoint, embedding: int | None, head: int | None, rounding: Rounding
) -> dict[str, Rounding]:
    """How the embedding and the head are rounded.

    Args:
        checkpoint: the model.
        embedding: bits of the embedding; None leaves it as it is. A tied head is the same matrix.
        head: bits of the head; None leaves it as it is.
        rounding: group size and symmetry; its bits do not count.

    Returns:
        By full name; empty where neither is asked for.

    Raises:
        UsageError: other bits than `BITS`, or a tied head asked for otherwise than the embedding.
        UnsupportedError: the checkpoint has no matrix of that name.
    """
    for option, bits in (("--quantize-embedding", embedding), ("--quantize-lm-head", head)):
        if bits is not None and bits not in BITS:
            raise UsageError(
                f"{bits} bits are not possible here", where=option, why="legal are 4 and 8", fix=f"{option} 8"
            )
    wanted = {}
    if embedding is not None:
        wanted[embedding_path(build_skeleton(checkpoint.config))] = embedding
    if head is not None and checkpoint.config.get("tie_word_embeddings"):
        if head != embedding:
            raise UsageError(
                "The head of this model is its embedding",
                where="--quantize-lm-head",
                why="config.json says tie_word_embeddings: true, so there is one matrix for both",
                fix=f"--quantize-embedding {head}, which quantizes both",
            )
    elif head is not None:
        wanted[_HEAD] = head
    for name in wanted:
        if f"{name}.weight" not in checkpoint.tensors:
            raise UnsupportedError(
                "The matrix to quantize is not in the checkpoint", where=name, why=f"no tensor {name}.weight"
            )
    return {name: Rounding(bits, rounding.group_size, rounding.symmetric) for name, bits in wanted.items()}


def quantize_rows(checkpoint: Checkpoint, name: str, rounding: Rounding) -> QuantizedWeight:
    """Round a matrix of the checkpoint to nearest, some rows at a time.

    Args:
        checkpoint: the model.
        name: full name of the matrix, without ".weight".
        rounding: how.
    """
    stored = checkpoint.read(f"{name}.weight")
    parts = [
        quantize(placed(np.array(stored[row : row + _ROWS_AT_ONCE], np.float32)), rounding)
        for row in range(0, stored.shape[0], _ROWS_AT_ONCE)
    ]
    q, scales, zeros = (
        taken_back(torch.cat([getattr(part, field) for part in parts])) for field in ("q", "scales", "zeros")
    )
    return QuantizedWeight(q, scales, zeros, rounding.bits, rounding.width(stored.shape[1]))
