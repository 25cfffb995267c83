"""Texts as token ids, by the model's own tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import CheckpointError


@dataclass(frozen=True)
class Document:
    """A text that stands on its own.

    Attributes:
        ids: its tokens, int64 [T].
        characters: how many it is written with.
        utf8_bytes: how many they are in UTF-8.
        loss_mask: bool [T], the tokens that count in losses; None for all.
    """

    ids: npt.NDArray[np.int64]
    characters: int
    utf8_bytes: int
    loss_mask: npt.NDArray[np.bool_] | None = None

    def counting(self) -> npt.NDArray[np.bool_]:
        """The mask, bool [T], also where all count."""
        return np.ones(self.ids.shape, dtype=bool) if self.loss_mask is None else self.loss_mask


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The model's own tokenizer.

    Raises:
        CheckpointError: the checkpoint has no tokenizer.json, or it cannot be read.
    """
    content = checkpoint.side_files.get("tokenizer.json")
    if content is None:
        raise CheckpointError(
            "The model has no tokenizer",
            where=checkpoint.source,
            why="text cannot become tokens without tokenizer.json",
            fix="copy tokenizer.json from the model's publisher beside the weights",
        )
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception and ValueError alike
        raise CheckpointError(
            "The tokenizer cannot be read", where="tokenizer.json", why=str(error)
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The token that stands for what the vocabulary lacks; None where it lacks nothing, or leaves it out."""
    model = json.loads(tokenizer.to_str())["model"]
    # Unigram has it as a number, the others as a word.
    found: int | None = model.get("unk_id")
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else found


def encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    """Token ids of a text, with the special tokens that the tokenizer itself adds, int64 [T]."""
    return np.asarray(tokenizer.encode(text).ids, dtype=np.int64)


def check_vocabulary(ids: npt.NDArray[np.int64], where: str, vocabulary: int) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        CheckpointError: a token id that is not in [0, vocabulary).
    """
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if outside.size:
        raise CheckpointError(
            "The tokenizer makes a token that the model does not have",
            where=f"{where}, token {int(outside[0])} of the text",
            why=f"its id is {int(ids[outside[0]])}, the model's vocabulary has {vocabulary}",
            fix="use the tokenizer that belongs to the model",
        )
