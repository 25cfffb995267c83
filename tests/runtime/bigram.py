"""The smallest language model there is: a table of logits for the next token given the last one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from awq_tvm.prompt.tokenizer import Tokenizer


class Bigram:
    """An executor whose model looks at one token; it keeps its sequences, so that leaks show.

    Args:
        table: [V, V] float32, row t the logits after token t.
        context_length: most tokens a sequence may hold.
    """

    def __init__(self, table: np.ndarray, context_length: int = 64) -> None:
        self.table, self.context_length = table, context_length
        self.weight_bytes = table.nbytes
        self.sequences: dict[int, list[int]] = {}
        self._next = 0

    def new_sequence(self) -> int:
        self._next += 1
        self.sequences[self._next] = []
        return self._next

    def remove_sequence(self, seq_id: int) -> None:
        del self.sequences[seq_id]

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        logits: Literal["last", "all"] = "last",
    ) -> np.ndarray:
        rows: list[int] = []
        for sequence, new in zip(seq_ids, tokens, strict=True):
            self.sequences[sequence] += new
            if len(self.sequences[sequence]) > self.context_length:
                raise IndexError("more tokens than the context holds")
            rows += new if logits == "all" else new[-1:]
        return self.table[rows].astype(np.float32)

    def step(
        self, seq_ids: Sequence[int], tokens: Sequence[Sequence[int]], _temperatures: Sequence[float]
    ) -> Sequence[np.ndarray]:
        return list(self.forward(seq_ids, tokens))


def chain(tokenizer: Tokenizer, text: str, *, end: int | None = None, context_length: int = 64) -> Bigram:
    """A model that, greedily, says `text` after its first token; each token of it may occur once."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    tokens += [] if end is None else [end]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"a token of {text!r} occurs twice")
    table = np.zeros((tokenizer.vocab_size, tokenizer.vocab_size), np.float32)
    for token, following in itertools.pairwise(tokens):
        table[token, following] = 9.0
    return Bigram(table, context_length)
