"""Embedding and head, quantized on request: what is written is the rounded matrix, and others read it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import export_checkpoint, open_checkpoint
from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.quantize import vocabulary
from awq_tvm.quantize.group_quantize import Rounding, round_trip
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import save_tiny_model

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def _run(folder, **arguments):
    return quantize_checkpoint(str(folder / "model"), folder / "q", method="rtn", **arguments)


@pytest.mark.parametrize(("embedding", "head"), [(8, 4), (4, None), (None, 8)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_each_is_rounded_as_asked(tmp_path, monkeypatch, embedding, head, symmetric):
    monkeypatch.setattr(vocabulary, "_ROWS_AT_ONCE", 50)
    original = save_tiny_model(tmp_path / "model")
    report = _run(tmp_path, quantize_embedding=embedding, quantize_lm_head=head, symmetric=symmetric)
    asked = {name: bits for name, bits in ((EMBEDDING, embedding), (HEAD, head)) if bits is not None}
    assert report.vocabulary == asked
    written = open_checkpoint(str(tmp_path / "q"))
    assert written.format == "compressed-tensors"
    assert len(written.quantized) == 14 + len(asked)
    for name in (EMBEDDING, HEAD):
        weight = original.get_submodule(name).weight.detach()
        if name in asked:
            wanted = round_trip(weight, Rounding(asked[name], 64, symmetric))
            np.testing.assert_array_equal(written.read_quantized(name).dequantize(), wanted.numpy())
            assert f"`{name}` ({asked[name]} bits" in (tmp_path / "q" / "README.md").read_text()
        else:
            np.testing.assert_array_equal(written.read(f"{name}.weight"), weight.half().numpy())


def test_a_tied_head_is_the_embedding(tmp_path):
    original = save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    for wrong in ({"quantize_lm_head": 8}, {"quantize_lm_head": 8, "quantize_embedding": 4}):
        with pytest.raises(UsageError, match="is its embedding"):
            _run(tmp_path, **wrong)
    _run(tmp_path, bits=8, quantize_embedding=8, quantize_lm_head=8)
    written = open_checkpoint(str(tmp_path / "q"))
    assert HEAD not in written.quantized
    model = build_model(written)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        wanted, found = original(ids).logits, model(ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("option", ["quantize_embedding", "quantize_lm_head"])
def test_other_widths_are_refused(tmp_path, option):
    save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match="legal are 4 and 8"):
        _run(tmp_path, **{option: 3})
    assert not (tmp_path / "q").exists()
    assert _run(tmp_path, **{option: 8}).bytes_after > 0


def test_formats_that_cannot_hold_them_refuse(tmp_path):
    save_tiny_model(tmp_path / "model")
    _run(tmp_path, quantize_embedding=4)
    with pytest.raises(UsageError, match="cannot store this scheme"):
        export_checkpoint(tmp_path / "awq", open_checkpoint(str(tmp_path / "q")), format="awq")
    export_checkpoint(tmp_path / "again", open_checkpoint(str(tmp_path / "q")), format="compressed-tensors")
    first, again = (open_checkpoint(str(tmp_path / name)) for name in ("q", "again"))
    assert again.scheme == first.scheme
    assert set(again.quantized) == set(first.quantized)


def test_a_matrix_that_is_not_there_is_named(tmp_path):
    save_tiny_model(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    tensors = {name: info for name, info in checkpoint.tensors.items() if name != "lm_head.weight"}
    rounding = Rounding(4, 64)
    found = vocabulary.roundings_of_vocabulary(checkpoint, None, 8, rounding)
    assert found == {HEAD: Rounding(8, 64)}
    with pytest.raises(UnsupportedError, match=r"no tensor lm_head\.weight"):
        vocabulary.roundings_of_vocabulary(replace(checkpoint, tensors=tensors), None, 8, rounding)
