"""The norm before the head: found by what logits depend on, fitted by their divergence, kept where that falls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UsageError
from awq_tvm.quantize.final_norm import learn_final_norm
from awq_tvm.quantize.options import METHODS, AwqOptions
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.streamed_model import StreamedModel
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import ALL_FAMILIES, VOCABULARY, save_tiny_model, write_text

OPTIONS = replace(METHODS["awq+"], scale_steps=2, learn_steps=2, learn_norm_steps=30)
NAMES = {"opt": "model.decoder.final_layer_norm.weight", "gpt_neox": "gpt_neox.final_layer_norm.weight"}
LN_F = ("falcon", "bloom", "gpt2", "gpt_bigcode")


def _name(family: str) -> str:
    if family == "mpt":
        return "transformer.norm_f.weight"
    of_gpt = family.startswith(LN_F)
    return NAMES.get(family, "transformer.ln_f.weight" if of_gpt else "model.norm.weight")


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_norm_is_found_and_the_logits_are_the_models(tmp_path, family):
    model = save_tiny_model(tmp_path / "model", family)
    streamed = StreamedModel(open_checkpoint(str(tmp_path / "model")))
    ids = torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = streamed.norms_behind_blocks(ids[:, :1])
        assert list(found) == [_name(family)]
        (weight,) = found.values()
        assert weight.requires_grad
        assert weight.grad is None
        doubled = {name: 2 * one.detach() for name, one in found.items()}
        hidden = streamed.enter(ids)
        for index in range(streamed.blocks):
            with streamed.block(index) as run:
                hidden = run(hidden)
        plain, other = streamed.logits(ids, hidden), streamed.logits(ids, hidden, doubled)
        torch.testing.assert_close(plain, model(ids).logits[0], rtol=1e-4, atol=1e-4)
        model.get_parameter(_name(family)).mul_(2)
        torch.testing.assert_close(other, model(ids).logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(streamed.logits(ids, hidden), plain)


def _quantized(folder, name, **changes):
    return quantize_checkpoint(
        str(folder / "model"),
        folder / name,
        method="awq+",
        bits=3,
        group_size=32,
        calibration=str(folder / "text.txt"),
        samples=16,
        sequence_length=48,
        options=replace(OPTIONS, **changes),
    )


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_text(tmp_path / "text.txt")
    return tmp_path


def test_the_answers_come_nearer_on_text_that_was_not_learned_from(folder):
    fitted, plain = _quantized(folder, "fitted"), _quantized(folder, "plain", learn_norm_steps=0)
    assert plain.norm is None
    assert fitted.norm is not None
    assert fitted.norm.kept
    assert fitted.norm.after < 0.98 * fitted.norm.before
    before, after = (open_checkpoint(str(folder / name)) for name in ("plain", "fitted"))
    changed = [name for name in before.tensors if (before.read(name) != after.read(name)).any()]
    assert changed == ["model.norm.weight"]
    assert after.read("model.norm.weight").dtype == "float16"
    for name in before.quantized:
        assert (before.read_quantized(name).q == after.read_quantized(name).q).all()
    assert (
        "one fitted to the quantized blocks, which was kept" in (folder / "fitted" / "README.md").read_text()
    )
    # And on any other tokens, by the whole models.
    ids = torch.randint(97, 123, (4, 48), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = build_model(open_checkpoint(str(folder / "model")))(ids).logits.log_softmax(-1)
        divergences = [
            float((expected.exp() * (expected - build_model(one)(ids).logits.log_softmax(-1))).sum(-1).mean())
            for one in (before, after)
        ]
    assert divergences[1] < divergences[0]
    assert divergences[0] == pytest.approx(fitted.norm.before, rel=0.3)


def test_a_norm_that_was_fitted_badly_is_not_kept(folder):
    spoilt = _quantized(folder, "spoilt", learn_norm_steps=1, learn_norm_rate=1.0)
    assert spoilt.norm is not None
    assert not spoilt.norm.kept
    assert spoilt.norm.after >= spoilt.norm.before
    before, after = (open_checkpoint(str(folder / name)) for name in ("model", "spoilt"))
    assert (before.read("model.norm.weight") == after.read("model.norm.weight")).all()


def test_tokens_that_do_not_count_teach_nothing(folder):
    checkpoint = open_checkpoint(str(folder / "model"))
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (8, 20), generator=generator)
    original = torch.randn(8, 20, 64, generator=generator)
    quantized = original + 0.1 * torch.randn(original.shape, generator=generator)
    mask = torch.ones(8, 20, dtype=torch.bool)
    mask[:, 10:] = False
    ruined = quantized.clone()
    ruined[:, 10:] = 1000.0
    settings = {"steps": 4, "rate": 0.02, "seed": 1, "progress": lambda _event: None}
    with torch.no_grad():
        clean = learn_final_norm(checkpoint, ids, mask, original, quantized, **settings)
        dirty = learn_final_norm(checkpoint, ids, mask, original, ruined, **settings)
        assert clean[1] == dirty[1]
        ruined[0, 0, 0] = float("nan")
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            learn_final_norm(checkpoint, ids, mask, original, ruined, **settings)


@pytest.mark.parametrize("change", [{"learn_norm_steps": -1}, {"learn_norm_rate": 0.0}])
def test_options_that_cannot_be_meant(change):
    with pytest.raises(UsageError, match="learn_norm"):
        AwqOptions(**change)
