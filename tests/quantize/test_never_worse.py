"""No group of linears and no block is ever worse than by rounding to nearest, whatever flows through it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from awq_tvm.quantize import block_step
from awq_tvm.quantize.architecture import architecture_of
from awq_tvm.quantize.awq import BlockResult, GroupReport, quantize_block_awq, quantize_block_rtn
from awq_tvm.quantize.block_calls import catch_block_inputs
from awq_tvm.quantize.block_step import BlockTask, block_loss, quantize_block, require_never_worse
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED, HiddenStates, HiddenStatesWriter
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.plain_linears import replace_by_linears
from tests.quantize.tiny_models import ALL_FAMILIES, VOCABULARY, tiny_model

OPTIONS = AwqOptions(scale_steps=6)


def _outliers(model, hidden):
    hidden[:, :, 5] = 1e4
    hidden[0, 0] = -1e4
    model.model.layers[0].mlp.up_proj.weight[7] *= 500.0


def _dead_channels(model, hidden):
    block = model.model.layers[0]
    hidden[:, :, ::3] = 0.0
    block.input_layernorm.weight[::3] = 0.0
    block.post_attention_layernorm.weight[:20] = 0.0
    block.mlp.up_proj.weight[::3] = 0.0


def _constant_groups(model, hidden):
    block = model.model.layers[0]
    block.self_attn.q_proj.weight[:, :32] = 0.25
    block.self_attn.o_proj.weight[:, 32:] = -1e-3
    block.mlp.down_proj.weight.fill_(-1.5)


def _zero_weights(model, hidden):
    for parameter in model.model.layers[0].parameters():
        parameter.zero_()


def _zero_inputs(model, hidden):
    hidden.zero_()


def _huge_norm(model, hidden):
    """Norms that float16 cannot hold once they are divided, and values far apart."""
    model.model.layers[0].input_layernorm.weight.copy_(torch.logspace(-6, 4, 64))
    model.model.layers[0].post_attention_layernorm.weight.fill_(1.00001)


HURT = [_outliers, _dead_channels, _constant_groups, _zero_weights, _zero_inputs, _huge_norm]
SHAPES = {"several": (3, 24), "one sample": (1, 24), "one token": (1, 1), "single tokens": (4, 1)}


def _task(folder, family, hurt, shape, rounding) -> BlockTask:
    model = tiny_model(family)
    replace_by_linears(model)
    architecture = architecture_of(model.config.to_dict())
    ids = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
    _, arguments = catch_block_inputs(model, architecture, ids[:1])
    hidden = model.get_input_embeddings()(ids)
    hurt(model, hidden)
    writer = HiddenStatesWriter(folder / "in", tuple(hidden.shape))
    writer.append(hidden)
    return BlockTask(
        block=model.get_submodule(architecture.blocks)[0],
        where="model.layers.0",
        architecture=architecture,
        arguments=arguments[0],
        inputs=dict.fromkeys((FULL, QUANTIZED), writer.finish()),
        roundings=dict.fromkeys(architecture.linears, rounding),
        search_tokens=32,
        loss_mask=torch.ones(shape, dtype=torch.bool),
    )


def _step(task: BlockTask, folder, options=OPTIONS) -> tuple[BlockResult, HiddenStates]:
    return quantize_block(task, HiddenStatesWriter(folder / "out", task.inputs[FULL].shape), options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hurt", HURT)
def test_whatever_flows_through(tmp_path, hurt, shape):
    for family, bits, clip, steps in (
        ("llama", 4, "two-sided", 4),
        ("qwen2", 2, "two-sided", 0),
        ("qwen3", 3, "paper", 4),
    ):
        with torch.no_grad():
            task = _task(tmp_path, family, hurt, SHAPES[shape], Rounding(bits, 32))
            result, targets = _step(task, tmp_path, replace(OPTIONS, clip=clip, learn_steps=steps))
            require_never_worse(result, task.where)
            assert all(torch.isfinite(tensor).all() for tensor in result.weights().values())
            # The losses that were asserted are those of what is written, measured afresh.
            rounded = quantize_block_rtn(task.block, task.architecture, task.roundings, task.where)
            assert result.loss == block_loss(task, result, task.inputs[FULL], targets)
            assert result.loss_rtn == block_loss(task, rounded, task.inputs[FULL], targets)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_linears_dequantized_when_called_compute_the_same(tmp_path, family):
    """To the last bit what all of them at once compute; and the block is left as it was."""
    with torch.no_grad():
        task = _task(tmp_path, family, lambda *_: None, (1, 24), Rounding(3, 32))
        before = {name: weight.clone() for name, weight in task.block.state_dict().items()}
        rounded = quantize_block_rtn(task.block, task.architecture, task.roundings, task.where)
        hidden = task.inputs[FULL][:1]
        assert torch.equal(task.run_quantized(hidden, rounded), task.run(hidden, rounded.weights()))
        with pytest.raises(RuntimeError):
            task.run_quantized(hidden[..., :-1], rounded)
    after = task.block.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.block.modules())


@pytest.mark.parametrize("guard", [True, False])
def test_a_block_that_the_search_ruined_is_rounded(tmp_path, monkeypatch, guard):
    """Groups that each look better can make a worse block; then it is rounded as a whole."""

    def ruin(*arguments):
        result = quantize_block_awq(*arguments)
        result.quantized["mlp.down_proj"].scales.mul_(8.0)
        return result

    monkeypatch.setattr(block_step, "quantize_block_awq", ruin)
    with torch.no_grad():
        task = _task(tmp_path, "llama", lambda *_: None, (3, 24), Rounding(4, 32))
        result, _ = _step(task, tmp_path, replace(OPTIONS, guard=guard))
        rounded = quantize_block_rtn(task.block, task.architecture, task.roundings, task.where)
    assert result.loss is not None
    assert result.loss_rtn is not None
    if not guard:
        assert result.loss > result.loss_rtn
        return
    assert result.loss == result.loss_rtn
    assert all(torch.equal(result.quantized[name].q, rounded.quantized[name].q) for name in rounded.quantized)
    assert [(group.exponent, group.clipped) for group in result.groups] == [(0.0, False)] * 4
    assert all(group.loss == group.loss_rtn for group in result.groups)


@pytest.mark.parametrize(
    ("group", "block", "message"),
    [(2.0, 0.5, "mlp input: loss 2.0"), (0.5, 2.0, "block: loss 2.0"), (float("nan"), 0.5, "loss nan")],
)
def test_worse_is_not_let_through(group, block, message):
    reports = [GroupReport("mlp input", 0.0, False, 1.0, group)]
    with pytest.raises(AssertionError, match=message):
        require_never_worse(BlockResult(groups=reports, loss_rtn=1.0, loss=block), "model.layers.3")
    good = [replace(reports[0], loss=1.0)]
    require_never_worse(BlockResult(groups=good, loss_rtn=1.0, loss=1.0), "model.layers.3")
