"""What `--calibration` names becomes token samples; what cannot be used is said."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UnsupportedError, UsageError
from awq_tvm.quantize.calibration import calibrate, default_for, separator_of
from awq_tvm.quantize.text_tokens import load_tokenizer
from tests.quantize.tiny_models import save_tiny_model, write_text


def _calibrate(folder, text, samples, length, seed=0):
    return calibrate(
        open_checkpoint(str(folder)), str(text), samples=samples, sequence_length=length, seed=seed
    )


def _documents(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_short_text_gives_fewer_samples_and_says_so(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 250)
    found = _calibrate(tmp_path / "model", text, 16, 100)
    assert found.token_ids.shape == (3, 100)
    assert "".join(map(chr, found.token_ids[found.loss_mask])) == text.read_text()
    assert "250 tokens" in found.warnings[0]
    assert "1600" in found.warnings[0]


def test_seed_decides(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    rows = _documents(tmp_path / "rows.jsonl", ["first", "second", "third", "fourth"])
    for path in (text, rows):
        same = [_calibrate(tmp_path / "model", path, 2, 6, seed).sha256 for seed in (1, 1, 2)]
        assert same[0] == same[1] != same[2]


def test_token_outside_the_vocabulary_names_its_place(tmp_path):
    save_tiny_model(tmp_path / "model", vocab_size=110)
    (tmp_path / "text.txt").write_text("a" * 150 + "z" * 50)
    with pytest.raises(CheckpointError, match=r"text\.txt, token 150 of the text"):
        _calibrate(tmp_path / "model", tmp_path / "text.txt", 1, 100)
    rows = _documents(tmp_path / "rows.jsonl", ["aaa", "aaz"])
    with pytest.raises(CheckpointError, match=r"rows\.jsonl, line 2, token 2 of the text"):
        _calibrate(tmp_path / "model", rows, 1, 6)


def test_documents_are_whole_and_separated(tmp_path):
    """The tiny tokenizer has a token a character; 2 ends a text."""
    save_tiny_model(tmp_path / "model")
    texts = ["one", "two words", "", "three more words"]
    found = _calibrate(tmp_path / "model", _documents(tmp_path / "rows.jsonl", texts), 10, 10)
    assert found.token_ids.shape == (3, 10)
    stream = "".join(map(chr, found.token_ids.ravel()))
    assert sorted(stream[:30].split("\x02")) == sorted(text for text in texts if text)
    assert len(stream) == 30
    assert "30 tokens" in found.warnings[0] or "28 tokens" in found.warnings[0]


def test_documents_without_text_are_no_calibration(tmp_path):
    save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match=r"(?s)is empty.*rows\.jsonl"):
        _calibrate(tmp_path / "model", _documents(tmp_path / "rows.jsonl", ["", "  "]), 1, 4)


@pytest.mark.parametrize(
    ("config", "separator"),
    [
        ({"eos_token_id": 2, "bos_token_id": 1}, 2),
        ({"eos_token_id": [5, 6]}, 5),
        ({"eos_token_id": None, "bos_token_id": 1}, 1),
        ({"eos_token_id": []}, None),
        ({}, None),
    ],
)
def test_what_stands_between_documents(config, separator):
    assert separator_of(config) == separator


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
