"""Tokens that do not count flow along and change nothing: padding behind a text is as if it were not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.progress import ignore_progress
from awq_tvm.quantize.activations import run_and_measure, that_count
from awq_tvm.quantize.architecture import architecture_of
from awq_tvm.quantize.block_calls import catch_block_inputs
from awq_tvm.quantize.block_step import BlockTask, quantize_block
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED, HiddenStatesWriter
from awq_tvm.quantize.judge import judge_of
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.sensitivity import measure_sensitivities
from tests.quantize.tiny_models import VOCABULARY, save_tiny_model, tiny_model

SAMPLES, LENGTH, PADDING = 3, 20, 12
ROUNDING = Rounding(3, 32)


def _ids(padding: int) -> torch.Tensor:
    ids = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    return torch.cat([ids, torch.full((SAMPLES, padding), 5)], dim=1)


def _mask(padding: int) -> torch.Tensor:
    return (torch.arange(LENGTH + padding) < LENGTH).repeat(SAMPLES, 1)


def _measure(model, padding):
    ids, architecture = _ids(padding), architecture_of(model.config.to_dict())
    _, arguments = catch_block_inputs(model, architecture, ids[:1])
    block = model.model.layers[0]
    return run_and_measure(
        block,
        architecture.groups,
        model.model.embed_tokens(ids).detach(),
        arguments[0],
        lambda output: None,
        group_widths={group.name: 32 for group in architecture.groups},
        search_samples=2,
        token_stride=3,
        where="block",
        loss_mask=_mask(padding),
    )


def test_statistics_and_judges_do_not_see_padding():
    model = tiny_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        block = model.model.layers[0]
        for padded, alone in zip(_measure(model, PADDING), _measure(model, 0), strict=True):
            torch.testing.assert_close(padded.mean_absolute, alone.mean_absolute)
            torch.testing.assert_close(padded.moments, alone.moments, rtol=1e-4, atol=1e-3)
            changed = {name: block.get_submodule(name).weight * 1.1 for name in padded.group.linears}
            loss = judge_of(block, alone).loss(changed)
            assert loss > 0
            assert judge_of(block, padded).loss(changed) == pytest.approx(loss, rel=1e-4)


def _task(folder, padding) -> BlockTask:
    model = tiny_model("llama", num_hidden_layers=1)
    architecture = architecture_of(model.config.to_dict())
    ids = _ids(padding)
    _, arguments = catch_block_inputs(model, architecture, ids[:1])
    hidden = model.model.embed_tokens(ids).detach()
    writer = HiddenStatesWriter(folder / f"in{padding}", tuple(hidden.shape))
    writer.append(hidden)
    return BlockTask(
        block=model.model.layers[0],
        where="model.layers.0",
        architecture=architecture,
        arguments=arguments[0],
        inputs=dict.fromkeys((FULL, QUANTIZED), writer.finish()),
        roundings=dict.fromkeys(architecture.linears, ROUNDING),
        search_tokens=SAMPLES * (LENGTH + padding),
        loss_mask=_mask(padding),
    )


def _quantize(folder, task):
    options = AwqOptions(scale_steps=4, learn_steps=3, learn_tokens=1000)
    with torch.no_grad():
        writer = HiddenStatesWriter(folder / "out", task.inputs[FULL].shape)
        return quantize_block(task, writer, options)[0]


def test_a_block_is_quantized_as_without_padding(tmp_path):
    padded = _quantize(tmp_path, _task(tmp_path, PADDING))
    alone = _quantize(tmp_path, _task(tmp_path, 0))
    assert padded.loss == pytest.approx(alone.loss, rel=0.02)
    assert padded.loss_rtn == pytest.approx(alone.loss_rtn, rel=1e-4)
    for name, weight in alone.quantized.items():
        assert (padded.quantized[name].q != weight.q).float().mean() < 0.01


def test_padding_that_counts_changes_the_losses(tmp_path):
    """The test above would pass too if nothing read the mask and padding did no harm; it does."""
    task = _task(tmp_path, PADDING)
    blind = _quantize(tmp_path, replace(task, loss_mask=torch.ones_like(task.loss_mask)))
    assert blind.loss_rtn != pytest.approx(_quantize(tmp_path, task).loss_rtn, rel=0.01)


def test_a_sample_in_which_nothing_counts_is_left_out(tmp_path):
    task = _task(tmp_path, 0)
    mask = task.loss_mask.clone()
    mask[1:] = False
    assert _quantize(tmp_path, replace(task, loss_mask=mask)).loss > 0


def test_sensitivities_do_not_see_padding(tmp_path):
    save_tiny_model(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    losses = []
    for padding in (0, PADDING):
        found = measure_sensitivities(
            checkpoint,
            _ids(padding).numpy(),
            ROUNDING,
            options=AwqOptions(scale_steps=2, search_tokens=SAMPLES * (LENGTH + padding)),
            progress=ignore_progress,
            loss_mask=_mask(padding).numpy(),
        )
        losses.append([list(one.losses.values()) for one in found])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_tokens_that_count():
    hidden = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([True, False, True, False])
    assert that_count(hidden, torch.ones(4, dtype=torch.bool)) is hidden
    assert torch.equal(that_count(hidden, mask), hidden[:, [0, 2]])
    picked = hidden[0, :3]
    assert that_count(picked, mask) is picked
