"""Texts to calibration samples: cut out of one long text, or packed from many documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from awq_tvm.errors import UsageError
from awq_tvm.quantize.text_tokens import Document


def cut(
    ids: npt.NDArray[np.int64], source: str, *, samples: int, sequence_length: int, seed: int
) -> npt.NDArray[np.int64]:
    """Cut samples out of a text at random places; they do not overlap.

    Args:
        ids: int64 [T], the whole text.
        source: where it is from, for the error.
        samples: how many.
        sequence_length: tokens of each.
        seed: of the places.

    Returns:
        int64 [S, sequence_length], S = min(samples, T // sequence_length).

    Raises:
        UsageError: not enough tokens for one sample.
    """
    _require_one_sample(ids.size, source, sequence_length)
    generator = np.random.default_rng(seed)
    available = ids.size // sequence_length
    taken = min(samples, available)
    # Which of the windows are taken, and how the tokens left over are spread between them, are both left to
    # chance.
    windows = np.sort(generator.choice(available, size=taken, replace=False))
    gaps = np.sort(generator.integers(0, ids.size - available * sequence_length + 1, size=taken))
    starts = windows * sequence_length + gaps
    return np.stack([ids[start : start + sequence_length] for start in generator.permutation(starts)])


def pack(
    documents: Sequence[Document],
    separator: int | None,
    source: str,
    *,
    samples: int,
    sequence_length: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Join documents and cut the whole into samples; no token is left out, none counts twice.

    Where the documents end inside a sample, it is filled up with their beginning, which does not count there.
    Samples of which nothing counts come last.

    Args:
        documents: in their order.
        separator: the token between two documents, which counts as the token before it; None for none.
        source: where they are from, for the error.
        samples: at most so many.
        sequence_length: tokens of each.

    Returns:
        int64 [S, sequence_length]: the first samples * sequence_length tokens of the documents; and which of them
        count in losses, bool of the same shape.

    Raises:
        UsageError: not enough tokens for one sample, or none that counts.
    """
    ids, masks = [np.empty(0, np.int64)], [np.empty(0, dtype=bool)]
    for index, document in enumerate(documents):
        if index and separator is not None:
            ids.append(np.asarray([separator], np.int64))
            masks.append(masks[-1][-1:])
        ids.append(document.ids)
        masks.append(document.counting())
    stream = np.concatenate(ids)[: samples * sequence_length]
    _require_one_sample(stream.size, source, sequence_length)
    mask = np.concatenate(masks)[: stream.size]
    shape = (-(-stream.size // sequence_length), sequence_length)
    mask = np.concatenate([mask, np.zeros(shape[0] * shape[1] - stream.size, dtype=bool)]).reshape(shape)
    if not mask.any():
        raise UsageError(
            "Nothing of the calibration text counts",
            where=source,
            why="no conversation in it has a text of the assistant",
            fix="give conversations with answers",
        )
    order = np.argsort(~mask.any(axis=1), kind="stable")
    return np.resize(stream, shape)[order], mask[order]


def _require_one_sample(tokens: int, source: str, sequence_length: int) -> None:
    if tokens < sequence_length:
        raise UsageError(
            "The calibration text is too short" if tokens else "The calibration text is empty",
            where=source,
            why=f"it has {tokens} tokens, and one sample needs {sequence_length}",
            fix="give a longer text, or a smaller --sequence-length",
        )
