"""Answers that are JSON of a given schema, through llguidance."""

from __future__ import annotations

import json
import threading
from typing import Any

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from awq_tvm.errors import AwqTvmError, UnsupportedError, UsageError

# As Python's json writes: a model may not fill its answer with blanks.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class JsonGrammars:
    """Makes constraints for one model.

    Args:
        tokenizer_json: content of tokenizer.json.
        vocab_size: rows of logits the model has.
        end: the token that ends a text; None: the model has none, and nothing can be constrained.
    """

    def __init__(self, tokenizer_json: bytes, vocab_size: int, end: int | None) -> None:
        self._source, self._vocab_size, self._end = tokenizer_json, vocab_size, end
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def constraint(self, schema: dict[str, Any]) -> JsonConstraint:
        """What an answer must be. Takes time, the first call a second: call it in a thread.

        Args:
            schema: a JSON schema.

        Raises:
            UsageError: it is no schema, or has what llguidance does not know.
            UnsupportedError: a model whose tokenizer llguidance does not read.
        """
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_LAYOUT)
        matcher = LLMatcher(self._read_tokenizer(), grammar)
        if matcher.is_error():
            raise UsageError(
                "The JSON schema cannot be used.",
                where="response_format",
                why=matcher.get_error().splitlines()[0][:300],
                fix="correct or simplify the schema",
            )
        return JsonConstraint(matcher, self._vocab_size)

    def _read_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    if self._end is None:
                        raise ValueError("the model has no token that ends a text")
                    text = self._source.decode()
                    self._tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._end)
                except Exception as error:  # the library raises nothing narrower
                    raise UnsupportedError(
                        "Answers of this model cannot be bound to JSON.",
                        where="response_format",
                        why=str(error)[:300],
                        fix="leave response_format out",
                    ) from None
            return self._tokenizer


class JsonConstraint:
    """Follows one answer through a grammar.

    Args:
        matcher: at its beginning.
        vocab_size: rows of logits.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocab_size)

    def copy(self) -> JsonConstraint:
        """The same for another answer, which shares nothing with this one."""
        return JsonConstraint(self._matcher.deep_copy(), self._vocab_size)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """Logits with -inf wherever a token cannot come next.

        Raises:
            AwqTvmError: the grammar outgrew what it may take.
        """
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        return np.where(allowed != 0, logits, np.float32(-np.inf))

    def accept(self, token: int) -> bool:
        """Take the token that was drawn; return whether nothing can follow it."""
        self._matcher.consume_token(token)
        self._check()
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def _check(self) -> None:
        if self._matcher.is_error():
            raise AwqTvmError(
                "The answer left its JSON schema.", why=self._matcher.get_error().splitlines()[0][:300]
            )
