"""Logits of a model in PyTorch, as a function, for those who compare with it window by window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.torch_model import build_model, fast_matmul, quiet_transformers


def reference_logits(model: str) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
    """Load a model; return a function from token ids [n] to its float32 logits [n, V].

    Args:
        model: what `open_checkpoint` takes.

    Raises:
        CheckpointError: a damaged model.
    """
    quiet_transformers()
    network = build_model(open_checkpoint(model))

    def logits(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with torch.no_grad(), fast_matmul():
            rows: npt.NDArray[np.float32] = (
                network(input_ids=torch.from_numpy(ids).unsqueeze(0), use_cache=False)
                .logits[0]
                .float()
                .numpy()
            )
        return rows

    return logits
