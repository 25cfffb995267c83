"""Samples are pieces of the text, from everywhere in it; packing leaves nothing out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_tvm.errors import UsageError
from awq_tvm.quantize.samples import cut, pack
from awq_tvm.quantize.text_tokens import Document


def _cut(ids, samples, length, seed=0):
    return cut(np.asarray(ids, np.int64), "text", samples=samples, sequence_length=length, seed=seed)


@pytest.mark.parametrize("seed", range(20))
def test_samples_are_pieces_that_do_not_overlap(seed):
    found = _cut(range(1037), 7, 100, seed)
    assert found.shape == (7, 100)
    assert (np.diff(found, axis=1) == 1).all()
    assert np.unique(found).size == 700


def test_every_place_of_the_text_is_reached():
    seen = np.unique(np.concatenate([_cut(range(337), 2, 100, seed).ravel() for seed in range(60)]))
    assert seen.size == 337


@pytest.mark.parametrize(("count", "message"), [(0, "empty"), (99, "99 tokens, and one sample needs 100")])
def test_text_that_is_too_short(count, message):
    with pytest.raises(UsageError, match=message):
        _cut(range(count), 16, 100)
    with pytest.raises(UsageError, match=message):
        pack([Document(np.arange(count), count, count)], None, "text", samples=16, sequence_length=100)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    separator=st.none() | st.just(-1),
    samples=st.integers(1, 6),
    length=st.integers(1, 9),
)
def test_packing_takes_every_token_once(lengths, separator, samples, length):
    """Each token is a number of its own; what was asked for is a beginning, in order, with none left out."""
    bounds = np.cumsum([0, *lengths])
    documents = [Document(np.arange(bounds[i], bounds[i + 1]), 0, 0) for i in range(len(lengths))]
    separators = 0 if separator is None else len(documents) - 1
    total = int(bounds[-1]) + separators
    if min(total, samples * length) < length:
        with pytest.raises(UsageError):
            pack(documents, separator, "text", samples=samples, sequence_length=length)
        return
    found, counting = pack(documents, separator, "text", samples=samples, sequence_length=length)
    assert counting.ravel().tolist() == [place < total for place in range(found.size)]
    assert found.shape[0] == min(samples, -(-total // length))
    once = found.ravel()[:total]
    numbers = once[once != -1]
    np.testing.assert_array_equal(numbers, np.arange(numbers.size))
    if total <= samples * length:
        assert numbers.size == bounds[-1]
        assert (once == -1).sum() == separators
        np.testing.assert_array_equal(found.ravel()[total:], once[: found.size - total])
    else:
        assert found.size == samples * length
    if separator is not None:
        # Before the first token of a document stands a separator for each document that ended.
        for place in np.flatnonzero(once != -1):
            document = np.searchsorted(bounds, once[place], side="right") - 1
            assert (once[:place] == -1).sum() == document


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 9))
def test_the_mask_stays_with_its_tokens(masks, length):
    bounds = np.cumsum([0, *map(len, masks)])
    documents = [
        Document(np.arange(bounds[i], bounds[i + 1]), 0, 0, np.array(mask)) for i, mask in enumerate(masks)
    ]
    wanted = np.flatnonzero(np.concatenate([document.counting() for document in documents]))
    if bounds[-1] < length or not wanted.size:
        with pytest.raises(UsageError, match=r"too short|Nothing"):
            pack(documents, None, "text", samples=200, sequence_length=length)
        return
    found, counting = pack(documents, None, "text", samples=200, sequence_length=length)
    assert sorted(found[counting]) == wanted.tolist()
    somewhere = counting.any(axis=1).tolist()
    assert somewhere == sorted(somewhere, reverse=True)
