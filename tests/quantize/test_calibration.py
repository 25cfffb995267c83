"""What `--calibration` names becomes token samples; what cannot be used is said."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UnsupportedError, UsageError
from awq_tvm.quantize.calibration import calibrate, default_for, separator_of
from awq_tvm.quantize.text_sources import python_help_topics
from awq_tvm.quantize.text_tokens import load_tokenizer, unknown_token
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


RUSSIAN = "Жили-были дед и баба, была внучка Маша, был и большой рыжий кот. " * 30  # noqa: RUF001 - Cyrillic is meant
CHINESE = "从前有一个国王。他有一个女儿。长得非常美丽。但是非常骄傲。" * 30


def _english_model(folder, kind, vocabulary=2000):
    """A tiny model with a tokenizer trained on the beginning of the help topics."""
    save_tiny_model(folder, vocab_size=vocabulary)
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        special, alphabet = [], pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special, alphabet = ["<unk>"], []
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(python_help_topics()[:100_000].split("\n\n"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["byte-level", "with unknown tokens"])
def test_text_of_the_vocabularys_own_language_is_no_misfit(tmp_path, kind):
    _english_model(tmp_path / "model", kind)
    (tmp_path / "text.txt").write_text(python_help_topics()[200_000:220_000])
    assert _calibrate(tmp_path / "model", tmp_path / "text.txt", 4, 64).warnings == ()


@pytest.mark.parametrize("text", [RUSSIAN, CHINESE, "0.1234\n" * 300])
def test_text_that_takes_a_token_a_letter_is_a_misfit(tmp_path, text):
    """As one text and as documents; the numbers are in the warning."""
    _english_model(tmp_path / "model", "byte-level")
    (tmp_path / "text.txt").write_text(text)
    _documents(tmp_path / "rows.jsonl", [text])
    tokens = len(load_tokenizer(open_checkpoint(str(tmp_path / "model"))).encode(text).ids)
    for name in ("text.txt", "rows.jsonl"):
        (warning,) = _calibrate(tmp_path / "model", tmp_path / name, 2, 32).warnings
        assert f"({name})" in warning
        size = len(text.encode()) / tokens
        assert f"a token is {len(text) / tokens:.1f} characters ({size:.1f} bytes)" in warning


def test_a_vocabulary_that_is_an_alphabet_fits_any_text(tmp_path):
    _english_model(tmp_path / "model", "byte-level", vocabulary=300)
    (tmp_path / "text.txt").write_text(RUSSIAN)
    assert _calibrate(tmp_path / "model", tmp_path / "text.txt", 2, 32).warnings == ()


def test_text_that_the_vocabulary_lacks_is_a_misfit(tmp_path):
    _english_model(tmp_path / "model", "with unknown tokens")
    (tmp_path / "text.txt").write_text("The old man lived by the sea. " * 50 + CHINESE)
    (warning,) = _calibrate(tmp_path / "model", tmp_path / "text.txt", 2, 32).warnings
    tokenizer = load_tokenizer(open_checkpoint(str(tmp_path / "model")))
    ids = np.array(tokenizer.encode((tmp_path / "text.txt").read_text()).ids)
    assert f"{np.mean(ids == 0):.1%} of the tokens" in warning
    # A model whose texts end with the unknown token.
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    assert _calibrate(tmp_path / "model", tmp_path / "text.txt", 2, 32).warnings == ()


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        (models.BPE({"a": 0}, []), None),
        (models.BPE({"a": 0, "?": 1}, [], unk_token="?"), 1),
        (models.WordLevel({"?": 0}, unk_token="?"), 0),
        (models.Unigram([("a", 0.0), ("?", 0.0)], unk_id=1, byte_fallback=False), 1),
        (models.Unigram([("a", 0.0)], unk_id=None, byte_fallback=False), None),
    ],
)
def test_what_stands_for_what_is_lacking(model, unknown):
    assert unknown_token(Tokenizer(model)) == unknown


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
