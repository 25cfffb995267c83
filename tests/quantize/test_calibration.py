"""Samples are pieces of the text, from everywhere in it; what cannot be used is said."""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, ResourceError, UnsupportedError, UsageError
from awq_tvm.quantize import calibration
from awq_tvm.quantize.calibration import (
    calibrate,
    cut,
    default_for,
    load_tokenizer,
    python_help_topics,
    read_data_set,
    read_text,
)
from tests.quantize.tiny_models import save_tiny_model, write_text


def _cut(ids, samples, length, seed=0):
    return cut(np.asarray(ids, np.int64), "text", 10_000, samples=samples, sequence_length=length, seed=seed)


@pytest.mark.parametrize("seed", range(20))
def test_samples_are_pieces_that_do_not_overlap(seed):
    found = _cut(range(1037), 7, 100, seed)
    assert found.token_ids.shape == (7, 100)
    assert found.warnings == ()
    assert (np.diff(found.token_ids, axis=1) == 1).all()
    assert np.unique(found.token_ids).size == 700


def test_every_place_of_the_text_is_reached():
    seen = np.unique(np.concatenate([_cut(range(337), 2, 100, seed).token_ids.ravel() for seed in range(60)]))
    assert seen.size == 337


def test_seed_decides():
    assert _cut(range(5000), 4, 64, 1).sha256 == _cut(range(5000), 4, 64, 1).sha256
    assert _cut(range(5000), 4, 64, 1).sha256 != _cut(range(5000), 4, 64, 2).sha256


def test_short_text_gives_fewer_samples_and_says_so():
    found = _cut(range(250), 16, 100)
    assert found.token_ids.shape == (2, 100)
    assert "250 tokens" in found.warnings[0]
    assert "2 samples" in found.warnings[0]


@pytest.mark.parametrize(("count", "message"), [(0, "empty"), (99, "99 tokens, and one sample needs 100")])
def test_text_that_is_too_short(count, message):
    with pytest.raises(UsageError, match=message):
        _cut(range(count), 16, 100)


@pytest.mark.parametrize("bad", [-1, 10_000])
def test_token_outside_the_vocabulary_names_its_place(bad):
    ids = np.arange(200)
    ids[150] = bad
    with pytest.raises(CheckpointError, match="token 150 of the text"):
        _cut(ids, 1, 100)


def test_text_that_is_not_text(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"hello \xff\xfe")
    with pytest.raises(UsageError, match=r"(?s)UTF-8.*byte 6"):
        read_text(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path)


def test_large_text_is_read_in_pieces_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_LARGEST_TEXT", 64 * 100)
    path = tmp_path / "large"
    path.write_text(" ".join(f"wörd{number}" for number in range(20_000)), encoding="utf-8")
    words = read_text(path).split()
    assert set(words) <= {f"wörd{number}" for number in range(20_000)}
    numbers = [int(word[4:]) for word in words]
    assert numbers == sorted(numbers)
    assert numbers[0] < 500
    assert numbers[-1] > 19_500


def test_help_topics_are_english_prose():
    text = python_help_topics()
    assert len(text) > 200_000
    assert text.count(" the ") > 2000


def test_python_without_help_topics(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ResourceError, match="pydoc_data"):
        python_help_topics()


def _data_sets(monkeypatch, rows):
    """A package of that name that hands rows out; the real one needs the network."""
    package = types.ModuleType("datasets")

    def load_dataset(path, config, split, streaming):
        assert (path, config, split, streaming) == ("org/name", "part", "train", True)
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)


def test_data_set_is_read_until_there_is_enough(monkeypatch):
    rows = [{"text": "a" * 50}, {"text": " "}, {"content": "b" * 60}, {"text": "c"}]
    _data_sets(monkeypatch, rows)
    assert read_data_set("org/name@part", 100) == "a" * 50 + "\n\n" + "b" * 60


def test_data_set_without_text(monkeypatch):
    _data_sets(monkeypatch, [{"label": 3}])
    with pytest.raises(UsageError, match="no text"):
        read_data_set("org/name@part", 100)


def test_data_set_out_of_reach(monkeypatch):
    _data_sets(monkeypatch, ConnectionError("offline"))
    with pytest.raises(ResourceError, match="offline"):
        read_data_set("org/name@part", 100)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match="pip install datasets"):
        read_data_set("org/name@part", 100)


def test_model_without_a_tokenizer(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    assert load_tokenizer(open_checkpoint(str(tmp_path / "model"))).get_vocab_size() > 0
    (tmp_path / "model" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(open_checkpoint(str(tmp_path / "model")))
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        calibrate(open_checkpoint(str(tmp_path / "model")), str(text), samples=1, sequence_length=8, seed=0)


def test_a_model_writes_its_own_text(tmp_path):
    """Drawn from the model's own distribution: what it thinks unlikely is rare, and a seed repeats."""
    model = save_tiny_model(tmp_path / "model", eos_token_id=[2, 3])
    checkpoint = open_checkpoint(str(tmp_path / "model"))

    def written(seed):
        return calibrate(checkpoint, "self", samples=6, sequence_length=40, seed=seed).token_ids

    ids = written(0)
    assert ids.shape == (6, 40)
    assert not np.isin(ids, [1, 2, 3]).any()
    np.testing.assert_array_equal(ids, written(0))
    assert (ids != written(1)).any()
    with torch.no_grad():
        begun = torch.cat([torch.ones(6, 1, dtype=torch.long), torch.from_numpy(ids)], dim=1)
        loss = float(model(begun, labels=begun).loss)
    assert loss < np.log(128) - 0.3


def test_a_long_sample_is_several_texts(tmp_path):
    save_tiny_model(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    ids = calibrate(checkpoint, "self", samples=2, sequence_length=301, seed=0).token_ids
    assert ids.shape == (2, 301)
    alone = calibrate(checkpoint, "self", samples=4, sequence_length=151, seed=0).token_ids
    np.testing.assert_array_equal(ids[0], np.concatenate([alone[0], alone[1]])[:301])


def test_more_samples_do_not_change_the_first(tmp_path):
    """The model writes a limited number side by side."""
    save_tiny_model(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    few = calibrate(checkpoint, "self", samples=16, sequence_length=12, seed=0).token_ids
    more = calibrate(checkpoint, "self", samples=19, sequence_length=12, seed=0).token_ids
    assert more.shape == (19, 12)
    assert np.array_equal(more[:16], few)
    assert not np.array_equal(more[16:], few[:3])


def test_the_default_is_the_models_own_text_where_that_is_cheap(tmp_path):
    save_tiny_model(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    assert default_for(checkpoint) == "self"
    name, info = next(iter(checkpoint.tensors.items()))
    large = dataclasses.replace(checkpoint, tensors={name: dataclasses.replace(info, shape=(10**6, 1001))})
    assert default_for(large) == "topics"
    silent = dataclasses.replace(checkpoint, config={**checkpoint.config, "bos_token_id": None})
    assert default_for(silent) == "topics"


def test_a_model_without_a_first_token_writes_nothing(tmp_path):
    save_tiny_model(tmp_path / "model", bos_token_id=None)
    with pytest.raises(UnsupportedError, match="bos_token_id"):
        calibrate(open_checkpoint(str(tmp_path / "model")), "self", samples=1, sequence_length=8, seed=0)
