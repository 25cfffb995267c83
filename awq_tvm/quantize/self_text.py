"""Calibration text that the model writes itself: sampled at temperature 1 from the beginning-of-text token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import UnsupportedError
from awq_tvm.memory import give_back_freed
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.quantize.device import placed, taken_back
from awq_tvm.quantize.torch_model import build_model, fast_matmul

# A step costs more the further it looks back, so a long sample is several texts one after the other.
_TEXT_TOKENS = 256
# Keys and values of more samples at once would take more memory than the model.
_SIDE_BY_SIDE = 16
# What attention computes in grows with every token, and what it leaves behind is too small to be used again: with
# two threads it came to a third of the process.
_STEPS_BETWEEN_TRIMS = 32


def sample_from_model(
    checkpoint: Checkpoint,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    progress: ProgressCallback = ignore_progress,
) -> npt.NDArray[np.int64]:
    """Let a model write, 16 samples side by side. The whole model is in memory for this, in float32.

    Tokens that begin, end or pad a text are never drawn. A sample longer than 256 tokens is several texts, each
    written from the beginning, as packed documents are.

    Args:
        checkpoint: the model.
        samples: how many texts.
        sequence_length: tokens of each, without the one they begin from.
        seed: of the drawing; the same seed on the same machine gives the same text.
        progress: told after every token.

    Returns:
        int64 [samples, sequence_length].

    Raises:
        UnsupportedError: the config names no beginning-of-text token.
    """
    begin = checkpoint.config.get("bos_token_id")
    if not isinstance(begin, int):
        raise UnsupportedError(
            "The model cannot write a text from nothing",
            where="config.json: bos_token_id",
            why="it names no token that begins a text",
            fix="--calibration default",
        )
    model = build_model(checkpoint)
    never = [
        begin,
        *_ids(checkpoint.config.get("eos_token_id")),
        *_ids(checkpoint.config.get("pad_token_id")),
    ]
    generator = torch.Generator().manual_seed(seed)
    texts = -(-sequence_length // _TEXT_TOKENS)
    length = -(-sequence_length // texts)
    batches = [min(_SIDE_BY_SIDE, samples - start) for start in range(0, samples, _SIDE_BY_SIDE)]
    steps = len(batches) * length
    written: list[npt.NDArray[np.int64]] = []
    for index, batch in enumerate(batches):

        def tell(done: int, before: int = index * length) -> None:
            progress(ProgressEvent("calibrate", before + done, steps, "the model writes"))

        # In a function of its own, so that its keys and values are gone before the next take their room.
        tokens = _write(model, batch * texts, length, begin, never, generator, tell)
        written.append(taken_back(tokens.reshape(batch, texts * length)[:, :sequence_length]))
    return np.concatenate(written)


def _write(
    model: PreTrainedModel,
    texts: int,
    length: int,
    begin: int,
    never: Sequence[int],
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> Tensor:
    """Some texts side by side, int64 [texts, length], without the token they begin from."""
    tokens = torch.full((texts, length + 1), begin)
    cache = Cache(layer_class_to_replicate=partial(_Room, length))
    with torch.no_grad(), fast_matmul():
        for place in range(length):
            output = model(input_ids=tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1]
            logits[:, never] = -torch.inf
            drawn = torch.multinomial(torch.softmax(logits, dim=-1).cpu(), 1, generator=generator)
            tokens[:, place + 1] = placed(drawn[:, 0])
            if (place + 1) % _STEPS_BETWEEN_TRIMS == 0:
                give_back_freed()
            tell(place + 1)
    return tokens[:, 1:]


class _Room(DynamicLayer):
    """Keys and values of one attention layer, in memory that is taken once.

    The library's own layer takes a larger piece for every token: it copies all, and what it leaves behind is too
    scattered to be used again, which cost three times the cache itself.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the next tokens, [B, heads, n, D] each; returns all so far."""
        if self._room is None:
            self.lazy_initialization(keys, values)
            self._room = tuple(
                new.new_empty(*new.shape[:2], self._length, new.shape[3]) for new in (keys, values)
            )
        start = self.get_seq_length()
        end = start + keys.shape[2]
        for room, new in zip(self._room, (keys, values), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def _ids(value: Any) -> list[int]:
    """The token ids of a config's value: a number, a list of them, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int)]
