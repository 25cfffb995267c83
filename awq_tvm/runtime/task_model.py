"""A loaded bundle as tasks need it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from awq_tvm.prompt.tokenizer import read_json_object
from awq_tvm.runtime.engine import Engine
from awq_tvm.tasks.request import ScoredModel, context_length_of, prefix_token_of


def task_model_of_bundle(engine: Engine, bundle: Path) -> ScoredModel:
    """The engine's compiled module, each text in a sequence of its own.

    Args:
        engine: the bundle, verified and loaded.
        bundle: its directory.

    Raises:
        UnsupportedError: the config names no token that begins or ends a text.
    """
    config = read_json_object({"config.json": (bundle / "config.json").read_bytes()}, "config.json")

    def logits(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        sequence = engine.executor.new_sequence()
        try:
            rows: npt.NDArray[np.float32] = engine.executor.forward([sequence], [ids.tolist()], logits="all")
        finally:
            engine.executor.remove_sequence(sequence)
        return rows

    return ScoredModel(
        logits,
        lambda text, special: engine.tokenizer.encode(text, add_special_tokens=special),
        vocabulary=engine.vocab_size,
        context_length=min(context_length_of(config), engine.executor.context_length),
        prefix_token=prefix_token_of(config),
    )
