"""Texts to calibration samples: cut out of one long text, or packed from many documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from awq_tvm.errors import UsageError


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
    documents: Sequence[npt.NDArray[np.int64]],
    separator: int | None,
    source: str,
    *,
    samples: int,
    sequence_length: int,
) -> npt.NDArray[np.int64]:
    """Join documents and cut the whole into samples; no token is left out, none is taken twice.

    Where the documents end inside a sample, that sample goes on with their beginning.

    Args:
        documents: token ids of each, int64 [T].
        separator: the token between two documents; None for none.
        source: where they are from, for the error.
        samples: at most so many.
        sequence_length: tokens of each.

    Returns:
        int64 [S, sequence_length]: read row by row, the first samples * sequence_length tokens of the documents.

    Raises:
        UsageError: not enough tokens for one sample.
    """
    between = np.asarray([] if separator is None else [separator], np.int64)
    parts = [part for document in documents for part in (between, document)][1:]
    stream = np.concatenate([np.empty(0, np.int64), *parts])[: samples * sequence_length]
    _require_one_sample(stream.size, source, sequence_length)
    return np.resize(stream, (-(-stream.size // sequence_length), sequence_length))


def _require_one_sample(tokens: int, source: str, sequence_length: int) -> None:
    if tokens < sequence_length:
        raise UsageError(
            "The calibration text is too short" if tokens else "The calibration text is empty",
            where=source,
            why=f"it has {tokens} tokens, and one sample needs {sequence_length}",
            fix="give a longer text, or a smaller --sequence-length",
        )
