"""A model of ours as the lm-evaluation-harness wants one. Importing this needs the harness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from awq_tvm.errors import CheckpointError, UnsupportedError
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.scoring import log_softmax
from awq_tvm.tasks.request import ScoredModel

# Texts, context tokens, continuation tokens: what the harness hands over.
_Request = tuple[tuple[str, str], list[int], list[int]]


class LanguageModel(TemplateLM):
    """Scores continuations, one sequence at a time. Texts are encoded as the harness does for transformers."""

    def __init__(self, model: ScoredModel, progress: ProgressCallback) -> None:
        super().__init__()
        self._model, self._progress = model, progress

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._model.prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; with what the tokenizer puts around a text unless told otherwise."""
        return self._model.encode(string, add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows of the context length where it is longer."""
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.eot_token_id,
                max_seq_len=self._model.context_length,
                context_len=1,
            )
            pieces = [(("", ""), *make_disjoint_window(window)) for window in windows]
            found.append(sum(likelihood for likelihood, _ in self._loglikelihood_tokens(pieces)))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Refuse: see `run`, which asks before anything is computed."""
        raise UnsupportedError("Tasks that let the model write are not supported")

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        windows = [self._window(context, continuation) for _, context, continuation in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # Answers of one token to one question have the same input: sorted, they meet, and it is run once.
        order = sorted(range(len(requests)), key=lambda place: windows[place][:-1])
        asked: list[int] | None = None
        logits = np.empty((0, 0), dtype=np.float32)
        for done, place in enumerate(order):
            continuation = requests[place][2]
            if continuation:
                if windows[place][:-1] != asked:
                    asked = windows[place][:-1]
                    logits = self._model.logits(np.asarray(asked, dtype=np.int64))
                found[place] = _likelihood(logits, continuation)
            self._progress(ProgressEvent("score", done + 1, len(requests)))
        return found

    def _window(self, context: list[int], continuation: list[int]) -> list[int]:
        """The last tokens of both, as many as the model can read and one more that is predicted only."""
        most = self._model.context_length
        if len(continuation) > most:
            raise UnsupportedError(
                "An answer of a task is longer than the model's context",
                why=f"it has {len(continuation)} tokens, the context holds {most}",
            )
        both = [*(context or [self.eot_token_id]), *continuation]
        if max(both) >= self._model.vocabulary:
            raise CheckpointError(
                "The tokenizer makes a token that the model does not have",
                why=f"its id is {max(both)}, the model's vocabulary has {self._model.vocabulary}",
                fix="use the tokenizer that belongs to the model",
            )
        return both[-(most + 1) :]


def _likelihood(logits: np.ndarray, continuation: list[int]) -> tuple[float, bool]:
    """Of a continuation whose last token the last row of logits predicts."""
    rows = logits[-len(continuation) :]
    if not np.isfinite(rows).all():
        raise CheckpointError(
            "Logits of the model are not finite", fix="check the checkpoint: `inspect MODEL`"
        )
    tokens = np.asarray(continuation)
    likelihoods = log_softmax(rows)[np.arange(tokens.size), tokens]
    return float(likelihoods.sum(dtype=np.float64)), bool((rows.argmax(axis=-1) == tokens).all())
