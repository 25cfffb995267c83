"""How text is scored: the protocol that PyTorch and the compiled module share, in numpy alone.

The token ids of a text are cut into windows that do not overlap. Within a window every token but the first
is predicted from those before it in the same window; nothing is carried from one window to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_tvm.errors import CheckpointError, UsageError

# Rows of logits that are turned into log-probabilities at once: 64 x 150,000 float32 is 38 MB.
_ROWS_AT_ONCE = 64


def windows(token_ids: npt.ArrayLike, context: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cut token ids into windows of `context` tokens that do not overlap.

    The last window may be shorter; it is left out only where it has a single token, which predicts nothing.

    Args:
        token_ids: [T] integers.
        context: tokens in a window, at least 2.

    Yields:
        int64 arrays of 2 to `context` tokens, in order.

    Raises:
        UsageError: context below 2, or fewer than 2 tokens.
    """
    ids = np.asarray(token_ids, dtype=np.int64).reshape(-1)
    if context < 2:
        raise UsageError(
            "The context is too short to score",
            where="context",
            why=f"it is {context}; a window needs one token to read and one to predict",
            fix="give a context of 2 or more",
        )
    if ids.size < 2:
        raise UsageError(
            "The text is too short to score",
            why=f"it has {ids.size} token(s), and at least 2 are needed",
            fix="give a longer text",
        )
    return (ids[start : start + context] for start in range(0, ids.size, context) if ids.size - start >= 2)


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Log-probabilities of each row, sums in float64.

    Args:
        logits: [n, V] floating point.

    Returns:
        float32 [n, V].
    """
    shifted: npt.NDArray[np.float32] = logits.astype(np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted


@dataclass
class Score:
    """Sums of what was measured so far; `add` windows, then read the means.

    Attributes:
        tokens: tokens predicted.
        nll_sum: sum of negative log-likelihoods, nats.
        compared: tokens that were compared with a reference.
        kl_sum: sum over these of KL(reference || model), nats.
        agreed: tokens of these for which both rank the same token first.
    """

    tokens: int = 0
    nll_sum: float = 0.0
    compared: int = 0
    kl_sum: float = 0.0
    agreed: int = 0

    def add(
        self,
        logits: npt.NDArray[Any],
        targets: npt.ArrayLike,
        reference_logits: npt.NDArray[Any] | None = None,
    ) -> None:
        """Add n predictions.

        Args:
            logits: [n, V] floating point, row i predicts targets[i].
            targets: [n] integers in 0..V-1.
            reference_logits: [n, V] of the model to compare with, or None.

        Raises:
            UsageError: shapes differ, or a target is not a row of the vocabulary.
            CheckpointError: logits that are not finite.
        """
        wanted = np.asarray(targets, dtype=np.int64).reshape(-1)
        if logits.ndim != 2 or logits.shape[0] != wanted.size:
            raise UsageError(
                "Logits and targets do not fit together",
                why=f"logits are {list(logits.shape)}, targets [{wanted.size}]; needed [n, V] and [n]",
            )
        if wanted.size and (wanted.min() < 0 or wanted.max() >= logits.shape[1]):
            raise UsageError(
                "A token of the text is outside the model's vocabulary",
                why=f"ids are {wanted.min()} to {wanted.max()}, the model has {logits.shape[1]} of them",
                fix="use the tokenizer that belongs to the model",
            )
        if reference_logits is not None and reference_logits.shape != logits.shape:
            raise UsageError(
                "The model and its reference do not have the same vocabulary",
                where="reference",
                why=f"logits are {list(logits.shape)}, those of the reference {list(reference_logits.shape)}",
                fix="compare a model with the one it was made from",
            )
        for start in range(0, wanted.size, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            reference = None if reference_logits is None else reference_logits[rows]
            self._add_rows(logits[rows], wanted[rows], reference)

    def _add_rows(
        self, logits: npt.NDArray[Any], targets: npt.NDArray[np.int64], reference: npt.NDArray[Any] | None
    ) -> None:
        _require_finite(logits, "the model")
        predicted = log_softmax(logits)
        likelihood = predicted[np.arange(targets.size), targets]
        self.tokens += int(targets.size)
        self.nll_sum -= float(likelihood.sum(dtype=np.float64))
        if reference is None:
            return
        _require_finite(reference, "the reference")
        wanted = log_softmax(reference)
        self.compared += int(targets.size)
        self.agreed += int((wanted.argmax(axis=-1) == predicted.argmax(axis=-1)).sum())
        self.kl_sum += float((np.exp(wanted) * (wanted - predicted)).sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood; infinity where that overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nll_sum / max(self.tokens, 1)))

    @property
    def kl_divergence(self) -> float | None:
        """Mean KL(reference || model) in nats a token, None without a reference."""
        return self.kl_sum / self.compared if self.compared else None

    @property
    def top1_agreement(self) -> float | None:
        """Part of the tokens, 0 to 1, where both rank the same token first; None without a reference."""
        return self.agreed / self.compared if self.compared else None

    def as_dict(self) -> dict[str, float | int | None]:
        """The four figures under the names that `eval --json` prints."""
        return {
            "perplexity": self.perplexity,
            "kl_divergence": self.kl_divergence,
            "top1_agreement": self.top1_agreement,
            "tokens": self.tokens,
        }


def _require_finite(logits: npt.NDArray[Any], whose: str) -> None:
    if not np.isfinite(logits).all():
        row = int(np.argwhere(~np.isfinite(logits))[0][0])
        raise CheckpointError(
            f"Logits of {whose} are not finite",
            why=f"NaN or infinity in row {row} of this window",
            fix="check the checkpoint: `inspect MODEL`",
        )
