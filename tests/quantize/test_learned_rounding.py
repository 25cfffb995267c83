"""Learned rounding chooses up or down and stretches scales, nothing else, and only where the block gains by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from awq_tvm.errors import UsageError
from awq_tvm.quantize import block_step
from awq_tvm.quantize.architecture import architecture_of
from awq_tvm.quantize.block_calls import catch_block_inputs
from awq_tvm.quantize.block_step import BlockTask, quantize_block
from awq_tvm.quantize.group_quantize import Quantized, Rounding, quantize
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED, HiddenStates, HiddenStatesWriter
from awq_tvm.quantize.learned_rounding import _begin, learn_rounding, relative_error
from awq_tvm.quantize.options import AwqOptions
from tests.quantize.tiny_models import FAMILIES, VOCABULARY, tiny_model

SEARCH = AwqOptions(scale_steps=6)
FOUR_BITS = Rounding(4, 32)
LEARN = replace(SEARCH, learn_steps=12, learn_rate=0.03, learn_scale_rate=0.0, learn_tokens=48)
STRETCH = replace(LEARN, learn_scale_rate=0.001)


def _stream(path, hidden) -> HiddenStates:
    writer = HiddenStatesWriter(path, tuple(hidden.shape))
    writer.append(hidden)
    return writer.finish()


def _task(folder, family="llama", rounding=FOUR_BITS) -> BlockTask:
    """A block whose inputs are already a little off, as behind quantized blocks."""
    model = tiny_model(family, num_hidden_layers=1)
    architecture = architecture_of(model.config.to_dict())
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (6, 24), generator=generator)
    _, arguments = catch_block_inputs(model, architecture, ids[:1])
    hidden = model.model.embed_tokens(ids)
    off = hidden + 0.02 * torch.randn(hidden.shape, generator=generator) * hidden.std()
    return BlockTask(
        block=model.model.layers[0],
        where="model.layers.0",
        architecture=architecture,
        arguments=arguments[0],
        inputs={FULL: _stream(folder / "full", hidden), QUANTIZED: _stream(folder / "quantized", off)},
        roundings=dict.fromkeys(architecture.linears, rounding),
        search_tokens=144,
        loss_mask=torch.ones(6, 24, dtype=torch.bool),
    )


def _step(task, folder, options):
    with torch.no_grad():
        return quantize_block(task, HiddenStatesWriter(folder / "out", task.inputs[FULL].shape), options)


def _error(task, result, targets) -> float:
    with torch.no_grad():
        outputs = task.run(task.inputs[QUANTIZED][0:1], result.weights())
        return float(relative_error(outputs, targets[0:1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_block_errs_less(tmp_path, family):
    task = _task(tmp_path, family)
    searched, targets = _step(task, tmp_path, SEARCH)
    learned, _ = _step(task, tmp_path, LEARN)
    assert _error(task, learned, targets) < 0.9 * _error(task, searched, targets)
    for name, weight in learned.quantized.items():
        before = searched.quantized[name]
        assert torch.equal(weight.scales, before.scales)
        assert torch.equal(weight.zeros, before.zeros)
        assert (weight.q.int() - before.q.int()).abs().max() <= 1
    assert any(not torch.equal(learned.quantized[name].q, old.q) for name, old in searched.quantized.items())
    assert learned.dense.keys() == searched.dense.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_errs_less_still_where_scales_may_stretch(tmp_path, family):
    task = _task(tmp_path, family, Rounding(3, 32))
    kept, targets = _step(task, tmp_path, replace(LEARN, learn_steps=40, guard=False))
    stretched, _ = _step(task, tmp_path, replace(STRETCH, learn_steps=40, guard=False))
    assert _error(task, stretched, targets) < 0.99 * _error(task, kept, targets)
    for name, weight in stretched.quantized.items():
        before = kept.quantized[name]
        assert torch.equal(weight.zeros, before.zeros)
        ratio = weight.scales.float() / before.scales.float()
        assert 0.95 < float(ratio.min()) < float(ratio.max()) < 1.05
        assert not torch.equal(weight.scales, before.scales)


def test_the_gradient_of_a_scale_is_what_moving_it_does(tmp_path):
    """Of a loss that is linear in what is written; see `moved`."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 64, generator=generator)
    quantized = quantize(
        weight, Rounding(3, 32), limits=(weight.view(4, 2, 32).amin(-1) / 2, torch.ones(4, 2))
    )
    one = _begin(weight, quantized, 7)
    gradient = torch.randn(weight.shape, generator=generator)
    one.take_gradient(gradient)

    def moved(factor: float) -> torch.Tensor:
        # The rounding taken for the identity: its error stays what it is at the scale of the start.
        position = one.weight / one.scales
        error = one.unclamped(one.scales) - one.zeros - position
        at = one.weight / (one.scales * factor)
        low, high = -one.zeros, one.levels - one.zeros
        clamped = torch.where(
            position + error < low, low, torch.where(position + error > high, high, at + error)
        )
        return (
            ((clamped * one.scales * factor).view_as(weight) * gradient).view(4, 2, 32).sum(-1, keepdim=True)
        )

    step = 1e-3
    expected = (moved(1 + step) - moved(1 - step)) / (2 * step)
    assert one.stretch.grad is not None
    torch.testing.assert_close(one.stretch.grad, expected, rtol=2e-3, atol=2e-3)


def test_scales_at_both_ends_of_float16_stay_inside(tmp_path):
    scales = torch.tensor([[65504.0, 2.0**-24]]).half()
    quantized = Quantized(torch.ones(1, 64, dtype=torch.uint8), scales, torch.zeros(1, 2, dtype=torch.uint8))
    for stretch in (-0.5, 0.5):
        one = _begin(torch.ones(1, 64), quantized, 15)
        one.stretch.data.fill_(stretch)
        found = one.finish().scales
        assert bool(torch.isfinite(found).all())
        assert bool((found > 0).all())


def test_it_is_the_same_every_time(tmp_path):
    task = _task(tmp_path)
    first, second = (_step(task, tmp_path, STRETCH)[0] for _ in range(2))
    for name, weight in second.quantized.items():
        assert torch.equal(first.quantized[name].q, weight.q)
        assert torch.equal(first.quantized[name].scales, weight.scales)


@pytest.mark.parametrize("rounding", [Rounding(3, 32), Rounding(4, 64, symmetric=True), Rounding(8, -1)])
def test_every_rounding(tmp_path, rounding):
    task = _task(tmp_path, rounding=rounding)
    learned, _ = _step(task, tmp_path, STRETCH)
    for weight in learned.quantized.values():
        assert int(weight.q.max()) <= rounding.levels
        if rounding.symmetric:
            assert bool((weight.zeros == 1 << (rounding.bits - 1)).all())


def test_without_steps_nothing_is_learned(tmp_path):
    task = _task(tmp_path)
    searched, targets = _step(task, tmp_path, SEARCH)
    with torch.no_grad():
        same = learn_rounding(
            task.block,
            task.arguments,
            searched,
            {name: rounding.levels for name, rounding in task.roundings.items()},
            task.inputs[QUANTIZED],
            targets,
            task.loss_mask,
            steps=0,
            rate=0.01,
            scale_rate=0.001,
            batch_tokens=48,
        )
    for name, weight in same.quantized.items():
        assert torch.equal(weight.q, searched.quantized[name].q)
        assert torch.equal(weight.scales, searched.quantized[name].scales)


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_weights_compute_what_the_block_did(tmp_path, family):
    task = _task(tmp_path, family)
    result, targets = _step(task, tmp_path, replace(SEARCH, guard=False))
    assert result.column_scales
    scaled = {name: weight.float() for name, weight in result.dense.items()}
    for name in result.quantized:
        scaled[f"{name}.weight"] = result.scaled(name, task.block.get_submodule(name).weight)
    with torch.no_grad():
        output = task.run(task.inputs[FULL][0:1], scaled)
    # What is left is the float16 of biases and of norms without scales.
    assert float(relative_error(output, targets[0:1])) < 1e-5


def test_rounding_that_was_learned_badly_is_not_kept(tmp_path, monkeypatch):
    task = _task(tmp_path)
    searched, _ = _step(task, tmp_path, SEARCH)

    def unlearn(block, arguments, start, levels, *_, **__):
        flipped = {
            name: replace(weight, q=levels[name] - weight.q) for name, weight in start.quantized.items()
        }
        return replace(start, quantized=flipped, loss=None)

    monkeypatch.setattr(block_step, "learn_rounding", unlearn)
    kept, _ = _step(task, tmp_path, LEARN)
    assert all(torch.equal(kept.quantized[name].q, old.q) for name, old in searched.quantized.items())
    assert kept.groups == searched.groups
    ruined, _ = _step(task, tmp_path, replace(LEARN, guard=False))
    assert ruined.loss > searched.loss


def test_on_full_precision_inputs(tmp_path):
    task = _task(tmp_path)
    one_stream = replace(task, inputs={FULL: task.inputs[FULL]})
    learned, _ = _step(one_stream, tmp_path, replace(LEARN, learn_from="full"))
    searched, _ = _step(one_stream, tmp_path, SEARCH)
    assert learned.loss < searched.loss


@pytest.mark.parametrize(
    "change",
    [
        {"learn_steps": -1},
        {"learn_rate": 0.0},
        {"learn_scale_rate": -0.1},
        {"learn_tokens": 0},
        {"learn_from": "memory"},
    ],
)
def test_options_that_cannot_be_meant(change):
    with pytest.raises(UsageError, match="learned rounding"):
        replace(LEARN, **change)
