"""A stream gives back what was put in, in any order of reading, and is there as a whole or not at all."""

from __future__ import annotations

import hashlib

import pytest
import torch

from awq_tvm.errors import CheckpointError, ResourceError
from awq_tvm.quantize import hidden_states
from awq_tvm.quantize.hidden_states import HiddenStatesWriter

SHAPE = (5, 3, 8)


def _hidden() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def _write(path, hidden):
    writer = HiddenStatesWriter(path, SHAPE)
    for sample in hidden:
        writer.append(sample.unsqueeze(0))
    assert not path.exists()
    return writer.finish()


def test_gives_back_what_was_put_in(tmp_path):
    hidden = _hidden()
    stream = _write(tmp_path / "s", hidden)
    assert (stream.shape, stream.dtype) == (SHAPE, "float32")
    assert stream.sha256 == hashlib.sha256((tmp_path / "s").read_bytes()).hexdigest()
    for samples in (slice(3, 4), slice(0, 2), slice(None), slice(4, 9), slice(2, 2)):
        assert torch.equal(stream[samples], hidden[samples])


def test_large_streams_are_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden_states, "_LARGEST_FLOAT32_BYTES", 5 * 3 * 8 * 4 - 1)
    hidden = _hidden()
    stream = _write(tmp_path / "s", hidden)
    assert stream.dtype == "bfloat16"
    assert (tmp_path / "s").stat().st_size == hidden.numel() * 2
    assert torch.equal(stream[1:4], hidden[1:4].bfloat16().float())


def test_file_that_became_shorter(tmp_path):
    stream = _write(tmp_path / "s", _hidden())
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-1])
    assert stream[:1].shape == (1, 3, 8)
    with pytest.raises(CheckpointError, match="shorter"):
        stream[4:]


def test_place_that_cannot_be_written(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        HiddenStatesWriter(tmp_path / "nowhere" / "s", SHAPE)


def test_disk_that_fails_later(tmp_path, monkeypatch):
    writer = HiddenStatesWriter(tmp_path / "s", SHAPE)
    writer.append(_hidden())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        writer.finish()
    assert not (tmp_path / "s").exists()
