"""A checkpoint as tasks need it: the network in PyTorch, float32, quantized weights dequantized."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.text_tokens import load_tokenizer
from awq_tvm.quantize.torch_model import build_model, fast_matmul, quiet_transformers
from awq_tvm.tasks.request import ScoredModel, context_length_of, prefix_token_of


def task_model_of_checkpoint(model: str) -> ScoredModel:
    """Load a model.

    Args:
        model: what `open_checkpoint` takes.

    Raises:
        CheckpointError: a damaged model, or one without tokenizer.
        UnsupportedError: its config names no token that begins or ends a text.
    """
    quiet_transformers()
    checkpoint = open_checkpoint(model)
    tokenizer = load_tokenizer(checkpoint)
    prefix = prefix_token_of(checkpoint.config)
    network = build_model(checkpoint)

    def logits(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with torch.no_grad(), fast_matmul():
            output = network(input_ids=torch.from_numpy(ids).unsqueeze(0), use_cache=False)
        rows: npt.NDArray[np.float32] = output.logits[0].float().numpy()
        return rows

    def encode(text: str, special: bool) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=special).ids)

    return ScoredModel(
        logits,
        encode,
        vocabulary=network.get_input_embeddings().weight.shape[0],
        context_length=context_length_of(checkpoint.config),
        prefix_token=prefix,
    )
