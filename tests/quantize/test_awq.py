"""Folding changes nothing; what is judged is what is written; nothing ends up worse than rounding."""

from __future__ import annotations

import pytest
import torch

from awq_tvm.errors import CheckpointError, UnsupportedError, UsageError
from awq_tvm.quantize.activations import run_and_measure
from awq_tvm.quantize.architecture import architecture_of
from awq_tvm.quantize.awq import half, quantize_block_awq, quantize_block_rtn
from awq_tvm.quantize.block_calls import catch_block_inputs
from awq_tvm.quantize.folding import (
    absorb_into_norm,
    mean_over_shared_rows,
    rows_are_shared,
    scales_of_rows,
)
from awq_tvm.quantize.group_quantize import Rounding, round_trip
from awq_tvm.quantize.judge import ModuleJudge, MomentJudge, judge_of
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.scale_search import scales_for, search_scales
from tests.quantize.tiny_models import FAMILIES, VOCABULARY, tiny_model

ROUNDING = Rounding(4, 32)


def _measure(model, *, samples=3, length=24, index=0, seed=0):
    """What enters block `index`, its keyword arguments, and the statistics of its groups."""
    architecture = architecture_of(model.config.to_dict())
    ids = torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        caught = [catch_block_inputs(model, architecture, sample.unsqueeze(0)) for sample in ids]
        hidden, arguments = torch.cat([one for one, _ in caught]), caught[0][1]
        for before in range(index):
            hidden, _ = _run(model, before, hidden, arguments)
        outputs, statistics = _run(model, index, hidden, arguments)
    return hidden, arguments, outputs, statistics


def _run(model, index, hidden, arguments):
    architecture = architecture_of(model.config.to_dict())
    widths = {group.name: 32 for group in architecture.groups}
    outputs: list[torch.Tensor] = []
    statistics = run_and_measure(
        model.model.layers[index],
        architecture.groups,
        hidden,
        arguments[index],
        outputs.append,
        group_widths=widths,
        search_samples=2,
        token_stride=2,
        where=f"model.layers.{index}",
    )
    return torch.cat(outputs), statistics


def _quantize(model, statistics, options=AwqOptions(), rounding=ROUNDING):  # noqa: B008 - frozen
    with torch.no_grad():
        return quantize_block_awq(
            model.model.layers[0],
            architecture_of(model.config.to_dict()),
            statistics,
            dict.fromkeys(architecture_of(model.config.to_dict()).linears, rounding),
            options,
            "model.layers.0",
        )


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_folding_leaves_the_full_precision_output_unchanged(family, key_value_heads):
    """The scales of the recipe at 8 bits, with the weights put back in full precision."""
    model = tiny_model(family, num_key_value_heads=key_value_heads)
    architecture = architecture_of(model.config.to_dict())
    hidden, arguments, outputs, statistics = _measure(model)
    block = model.model.layers[0]
    generator = torch.Generator().manual_seed(5)
    weights = {name: block.get_submodule(name).weight.clone() for name in architecture.linears}
    biases = {name: block.get_submodule(name).bias for name in architecture.linears}
    with torch.no_grad():
        for measured in statistics:
            group = measured.group
            scales = torch.rand(measured.mean_absolute.shape, generator=generator) * 8 + 0.1
            feeder = block.get_submodule(group.feeder)
            if group.feeder_is_linear:
                scales = mean_over_shared_rows(scales, group.rows)
                rows = scales_of_rows(scales, group.rows, feeder.weight.shape[0])
                weights[group.feeder] /= rows.unsqueeze(1)
                if biases[group.feeder] is not None:
                    biases[group.feeder] /= rows
            else:
                kept, scales = absorb_into_norm(feeder.weight, scales)
                feeder.weight.copy_(kept.float())
            for name in group.linears:
                weights[name] *= scales
        for name, weight in weights.items():
            block.get_submodule(name).weight.copy_(weight)
        folded = block(hidden, **arguments[0])
    folded = folded[0] if isinstance(folded, tuple) else folded
    assert float((folded - outputs).abs().max()) < 1e-4 * float(outputs.abs().max())


@pytest.mark.parametrize("clip", ["two-sided", "paper", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_judged_is_what_is_written(family, clip):
    """The written weights are whole, and lose less than plain rounding, group by group and in all."""
    model = tiny_model(family)
    architecture = architecture_of(model.config.to_dict())
    hidden, arguments, outputs, statistics = _measure(model)
    block = model.model.layers[0]
    result = _quantize(model, statistics, AwqOptions(clip=clip))
    assert [report.name for report in result.groups] == [group.name for group in architecture.groups]
    for report in result.groups:
        assert report.loss <= report.loss_rtn
    assert any(report.exponent > 0 for report in result.groups)
    written = {f"{name}.weight": weight.dequantize() for name, weight in result.quantized.items()}
    written |= {name: tensor.float() for name, tensor in result.dense.items()}
    assert set(written) == {name for name, _ in block.named_parameters()}
    rounded = {
        f"{name}.weight": round_trip(block.get_submodule(name).weight, ROUNDING)
        for name in architecture.linears
    }

    def block_loss(weights):
        with torch.no_grad():
            output = torch.func.functional_call(block, weights, (hidden[:1],), arguments[0])
        output = output[0] if isinstance(output, tuple) else output
        return float((output - outputs[:1]).square().mean())

    assert 0 < block_loss(written) < block_loss(rounded)


@pytest.mark.parametrize("hurt", ["outliers", "dead channels", "constant groups", "zero"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_never_worse_than_rounding(hurt, bits):
    model = tiny_model("llama")
    block = model.model.layers[0]
    with torch.no_grad():
        if hurt == "outliers":
            block.input_layernorm.weight[3] = 3000.0
            block.mlp.up_proj.weight[7] *= 500.0
        elif hurt == "dead channels":
            block.input_layernorm.weight[:20] = 0.0
            block.mlp.up_proj.weight[::3] = 0.0
        elif hurt == "constant groups":
            block.self_attn.q_proj.weight[:, :32] = 0.25
            block.mlp.down_proj.weight.fill_(-1.5)
        else:
            block.mlp.gate_proj.weight.zero_()
            block.self_attn.v_proj.weight.zero_()
    _, _, _, statistics = _measure(model)
    result = _quantize(model, statistics, rounding=Rounding(bits, 32))
    for report in result.groups:
        assert report.loss <= report.loss_rtn
    assert all(torch.isfinite(weight.dequantize()).all() for weight in result.quantized.values())
    assert all(torch.isfinite(tensor).all() for tensor in result.dense.values())


def test_the_guard_is_what_keeps_a_bad_clip_out(monkeypatch):
    """With a clip search that ruins weights, the group falls back; without the guard it does not."""
    model = tiny_model("llama")
    _, _, _, statistics = _measure(model)

    def ruin(weight, moments, _rounding):
        shape = (weight.shape[0], moments.shape[0])
        return torch.full(shape, -1e-4), torch.full(shape, 1e-4)

    monkeypatch.setattr("awq_tvm.quantize.awq.search_two_sided", ruin)
    guarded = _quantize(model, statistics)
    assert all(not report.clipped and report.loss <= report.loss_rtn for report in guarded.groups)
    bare = _quantize(model, statistics, AwqOptions(guard=False))
    assert all(report.clipped and report.loss > report.loss_rtn for report in bare.groups)


def test_moment_judge_agrees_with_running_the_linear():
    model = tiny_model("llama")
    _, _, _, statistics = _measure(model)
    down = statistics[-1]
    inputs = []
    block = model.model.layers[0]
    with torch.no_grad():
        handle = block.mlp.down_proj.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        _measure(model)
        handle.remove()
        weight = block.mlp.down_proj.weight
        changed = round_trip(weight, Rounding(3, 32))
        # The block ran once on each of three samples while _measure looked.
        x = torch.cat(inputs).reshape(-1, weight.shape[1])
        expected = float((x @ (changed - weight).T).square().mean())
        judge = judge_of(block, down)
        assert isinstance(judge, MomentJudge)
        assert judge.loss({"mlp.down_proj": changed}) == pytest.approx(expected, rel=1e-4)
        assert judge.loss({"mlp.down_proj": weight}) == 0.0
        other = judge_of(block, statistics[0])
        assert isinstance(other, ModuleJudge)
        assert other.loss({}) == 0.0


def test_statistics_are_those_of_the_inputs():
    model = tiny_model("qwen3")
    hidden, _, _, statistics = _measure(model)
    with torch.no_grad():
        x = model.model.layers[0].input_layernorm(hidden).reshape(-1, 64)
    torch.testing.assert_close(statistics[0].mean_absolute, x.abs().mean(dim=0), rtol=1e-5, atol=1e-7)
    expected = torch.stack([x[:, i : i + 32].T @ x[:, i : i + 32] / x.shape[0] for i in (0, 32)])
    torch.testing.assert_close(statistics[0].moments, expected, rtol=1e-4, atol=1e-5)


def test_grid_holds_both_ends():
    """The identity where activations say nothing, r = 1 where one channel carries everything."""
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    class Wants:
        def __init__(self, magnitude, exponent):
            self.wanted = round_trip(weight * scales_for(magnitude, exponent), ROUNDING)
            self.wanted /= scales_for(magnitude, exponent)

        def loss(self, weights):
            return float((weights["w"] - self.wanted).square().sum())

    magnitude = torch.linspace(0.01, 3.0, 32)
    for exponent in (0.0, 0.05, 0.5, 0.95, 1.0):
        choice = search_scales(
            {"w": weight}, magnitude, Wants(magnitude, exponent), {"w": ROUNDING}, steps=20
        )
        assert choice.loss <= choice.loss_plain
        if exponent in (0.0, 1.0):
            assert (choice.exponent, choice.loss) == (exponent, 0.0)
    assert torch.equal(scales_for(magnitude, 0.0), torch.ones(32))


def test_scales_of_dead_and_loud_channels_are_finite():
    magnitude = torch.tensor([0.0, 1e-30, 1.0, 1e30])
    for step in range(21):
        scales = scales_for(magnitude, step / 20)
        assert bool(torch.isfinite(scales).all())
        assert bool((scales > 0).all())


def test_norm_keeps_what_float16_can_hold():
    norm = torch.tensor([1.0, 0.0, 1.0, -2.0, 60000.0])
    scales = torch.tensor([0.3, 2.0, 1e9, 0.7, 0.1])
    divided, corrected = absorb_into_norm(norm, scales)
    assert divided.dtype == torch.float16
    assert bool(torch.isfinite(divided).all())
    assert bool((corrected > 0).all())
    torch.testing.assert_close(divided.float() * corrected, norm, rtol=1e-6, atol=0)
    assert corrected[2] == 1.0  # 1e-9 is zero in float16
    assert corrected[4] == 1.0  # 600,000 is infinite


def test_rows_that_make_several_channels():
    rows = (0, 1, 0, 1, 3)
    assert rows_are_shared(rows)
    assert not rows_are_shared((2, 0, 1))
    shared = mean_over_shared_rows(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), rows)
    assert shared.tolist() == [2.0, 3.0, 2.0, 3.0, 5.0]
    assert scales_of_rows(shared, rows, 5).tolist() == [2.0, 3.0, 1.0, 5.0, 1.0]


def test_options_that_share_no_value_scales_leave_the_output_unscaled():
    model = tiny_model("llama")
    _, _, _, statistics = _measure(model)
    result = _quantize(model, statistics, AwqOptions(share_value_scales=False))
    assert result.groups[1].exponent == 0.0


def test_rounding_to_nearest_leaves_the_rest_alone():
    model = tiny_model("qwen2")
    block = model.model.layers[0]
    architecture = architecture_of(model.config.to_dict())
    with torch.no_grad():
        result = quantize_block_rtn(
            block, architecture, dict.fromkeys(architecture.linears, ROUNDING), "model.layers.0"
        )
    assert set(result.quantized) == set(architecture.linears)
    assert set(result.dense) == {n for n, _ in block.named_parameters()} - {
        f"{n}.weight" for n in architecture.linears
    }
    torch.testing.assert_close(
        result.quantized["mlp.up_proj"].dequantize(),
        round_trip(block.mlp.up_proj.weight, ROUNDING),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activation_that_is_not_finite_names_layer_and_sample(bad):
    model = tiny_model("llama")
    architecture = architecture_of(model.config.to_dict())
    hidden, arguments, _, _ = _measure(model)
    hidden[2, 5, 3] = bad
    with torch.no_grad(), pytest.raises(CheckpointError, match=r"(?s)layers\.0.*sample 2"):
        _run(model, 0, hidden, arguments)
    assert architecture.groups[0].name == "attention input"


def test_overflow_inside_a_block_names_the_linear():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(3e38)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down_proj, calibration sample 0"):
        _measure(model)


def test_dense_weight_too_large_for_float16():
    with pytest.raises(UnsupportedError, match="70000"):
        half(torch.tensor([1.0, -70000.0]), "model.norm.weight")


@pytest.mark.parametrize("change", [{"scale_steps": -1}, {"search_tokens": 0}, {"clip": "both"}])
def test_options_refused(change):
    with pytest.raises(UsageError, match="options"):
        AwqOptions(**change)


def test_unknown_family():
    with pytest.raises(UnsupportedError, match="llama, llava, mistral"):
        architecture_of({"model_type": "rwkv"})
    with pytest.raises(UnsupportedError):
        architecture_of({})


def test_each_linear_is_rounded_its_own_way():
    model = tiny_model("llama")
    _, _, _, statistics = _measure(model)
    architecture = architecture_of(model.config.to_dict())
    roundings = dict.fromkeys(architecture.linears, Rounding(2, 32))
    roundings |= {"self_attn.v_proj": Rounding(8, 32), "mlp.down_proj": Rounding(3, 32, symmetric=True)}
    with torch.no_grad():
        result = quantize_block_awq(
            model.model.layers[0], architecture, statistics, roundings, AwqOptions(), "model.layers.0"
        )
    for name, weight in result.quantized.items():
        assert roundings[name].levels // 2 < int(weight.q.max()) <= roundings[name].levels, name
    assert bool((result.quantized["mlp.down_proj"].zeros == 4).all())
