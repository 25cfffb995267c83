"""Mixtures of experts: one linear for each expert, routers that follow the scales, experts that are hardly asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize import activations
from awq_tvm.quantize.activations import run_and_measure
from awq_tvm.quantize.architecture import architecture_of, architectures_of
from awq_tvm.quantize.block_calls import catch_block_inputs
from awq_tvm.quantize.evaluate import evaluate_torch
from awq_tvm.quantize.families import family_of
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.plain_linears import Experts, experts_in, replace_by_linears
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import ALL_FAMILIES, VOCABULARY, save_tiny_model, tiny_model, write_text

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v2-lite")
# The expert that the router of the last block never chooses.
IDLE = 2


def _ids(length: int = 48) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*MIXTURES, "gpt2"])
def test_linears_compute_what_transformers_own_matrices_do(name):
    model = tiny_model(name)
    with torch.no_grad():
        wanted = model(_ids()).logits
        replace_by_linears(model)
        found = model(_ids()).logits
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("name", [*MIXTURES, "gpt2"])
def test_a_folder_written_by_transformers_is_read_whole(tmp_path, name):
    """Every tensor of the files is a parameter of ours, and every parameter is in the files."""
    theirs = save_tiny_model(tmp_path / "model", name)
    checkpoint = in_network_terms(open_checkpoint(str(tmp_path / "model")))
    ours = build_model(checkpoint)
    assert set(checkpoint.tensors) == {parameter for parameter, _ in ours.named_parameters()}
    with torch.no_grad():
        wanted, found = theirs(_ids()).logits, ours(_ids()).logits
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("name", [*MIXTURES, "gpt2"])
def test_quantized_files_keep_the_names_of_those_they_were_made_from(tmp_path, name):
    save_tiny_model(tmp_path / "model", name)
    before = load_file(tmp_path / "model" / "model.safetensors")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn")
    written = open_checkpoint(str(tmp_path / "q"))
    assert {f"{linear}.weight" for linear in written.quantized} | set(written.tensors) == set(before)
    assert len(written.quantized) + len(written.tensors) == len(before)
    assert written.scheme is not None
    kept_dense = set(written.scheme.modules_to_not_convert)
    assert {name for name in before if name.endswith(("gate.weight", "expert_gate.weight"))} == {
        f"{name}.weight" for name in kept_dense if name.endswith("gate")
    }


@pytest.mark.parametrize(
    ("name", "followers"),
    [
        ("mixtral", {"mlp.gate"}),
        ("qwen2_moe", {"mlp.gate", "mlp.shared_expert_gate"}),
        ("qwen3_moe", {"mlp.gate"}),
        ("deepseek_v2", {"mlp.gate"}),
    ],
)
def test_routers_and_gates_follow_the_scales_of_the_experts(name, followers):
    model = tiny_model(name)
    replace_by_linears(model)
    groups = architectures_of(model, family_of(model.config.to_dict()))[-1].groups
    group = next(group for group in groups if group.followers)
    assert set(group.followers) == followers
    assert {f"mlp.experts.{number}.{part}_proj" for number in range(4) for part in ("gate", "up")} <= set(
        group.linears
    )
    assert group.judged_by == "mlp"
    of_experts = [group for group in groups if group.expert_of]
    assert [group.linears for group in of_experts] == [(f"mlp.experts.{n}.down_proj",) for n in range(4)]
    assert len({group.name for group in groups}) == len(groups)


def test_every_expert_answers_for_its_tokens_alone():
    """Experts that multiply by their number: a token's answer says who was asked, and how much each counted."""
    experts = Experts([torch.nn.Linear(1, 1, bias=False) for _ in range(3)])
    for number, expert in enumerate(experts):
        torch.nn.init.constant_(expert.weight, 10.0**number)
    hidden = torch.tensor([[1.0], [2.0], [3.0]])
    chosen = torch.tensor([[0, 2], [2, 0], [2, 1]])
    weights = torch.tensor([[0.5, 1.0], [1.0, 0.25], [2.0, 1.0]])
    with torch.no_grad():
        assert experts(hidden, chosen, weights).flatten().tolist() == [100.5, 200.5, 630.0]
        experts.asked_all = (1,)
        assert experts(hidden, chosen, weights).flatten().tolist() == [10.0, 20.0, 30.0]
    nobody = torch.full((3, 2), 7)
    experts.asked_all = None
    assert not experts(hidden, nobody, weights).any()


def _save_with_idle_expert(folder, name="qwen3_moe"):
    """A model in whose last block a router never chooses expert IDLE: what enters has a channel that is positive.

    Every embedding has it, and nothing writes to it, so that it is positive in front of every router.
    """
    save_tiny_model(folder, name)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][:, 0] = 1.0
    for parameter, array in weights.items():
        if parameter.endswith((".o_proj.weight", ".down_proj.weight")):
            array[0] = 0
        if parameter.endswith("post_attention_layernorm.weight"):
            array[0] = 1
    weights["model.layers.1.mlp.gate.weight"][:, 0] = 0
    weights["model.layers.1.mlp.gate.weight"][IDLE] = 0
    weights["model.layers.1.mlp.gate.weight"][IDLE, 0] = -100
    save_file(weights, path, {"format": "pt"})


def _statistics(folder, fewest, monkeypatch, loss_mask=None):
    monkeypatch.setattr(activations, "FEWEST_TOKENS_OF_AN_EXPERT", fewest)
    model = build_model(open_checkpoint(str(folder)))
    family = family_of(model.config.to_dict())
    with torch.no_grad():
        hidden, arguments = catch_block_inputs(model, family, _ids())
        block = model.get_submodule(family.blocks)[1]
        groups = architecture_of(model.config.to_dict()).groups
        outputs: list[torch.Tensor] = []
        found = run_and_measure(
            block,
            groups,
            hidden,
            arguments[1],
            outputs.append,
            group_widths={group.name: 64 for group in groups},
            search_samples=1,
            token_stride=1,
            where="block",
            loss_mask=loss_mask,
        )
        again = block(hidden, **arguments[1])
    assert torch.equal(outputs[0], again)
    assert all(experts.asked_all is None for experts in experts_in(block).values())
    return block, hidden, {one.group.name: one for one in found}


def test_an_idle_expert_is_measured_on_all_tokens(tmp_path, monkeypatch):
    """The mean of what its last linear is asked is that of all tokens; other experts are measured as they were."""
    _save_with_idle_expert(tmp_path / "model")
    counts = torch.ones(1, 48, dtype=torch.bool)
    counts[0, 40:] = False
    block, _, found = _statistics(tmp_path / "model", 1, monkeypatch, counts)
    idle = found[f"mlp output of mlp.experts.{IDLE}.down_proj"]
    assert [name for name, one in found.items() if one.short] == [idle.group.name]
    shared = found["mlp input"]
    inputs = shared.calls[0].args[0]
    assert inputs.shape[1] == 40
    assert torch.allclose(shared.mean_absolute, inputs[0].abs().mean(0), rtol=1e-5)
    asked = []
    hook = block.mlp.experts[IDLE].down_proj.register_forward_pre_hook(
        lambda _module, args: asked.append(args[0])
    )
    with torch.no_grad():
        block.mlp.experts[IDLE](inputs[0])
    hook.remove()
    assert torch.allclose(idle.mean_absolute, asked[0].abs().mean(0), rtol=1e-4)
    assert torch.allclose(idle.moment, asked[0].T @ asked[0] / 40, rtol=1e-4, atol=1e-6)
    # With every expert short, all are measured anew.
    _, _, all_anew = _statistics(tmp_path / "model", 1000, monkeypatch, counts)
    assert sum(one.short for one in all_anew.values()) == 4
    assert torch.equal(all_anew[idle.group.name].moment, idle.moment)


def test_a_large_expert_that_is_idle_is_judged_by_calls_on_all_tokens(tmp_path, monkeypatch):
    """Where no moment is kept, the tokens are."""
    _save_with_idle_expert(tmp_path / "model")
    monkeypatch.setattr(activations, "_FULL_MOMENT_LIMIT", 8)
    _, _, found = _statistics(tmp_path / "model", 1, monkeypatch)
    idle = found[f"mlp output of mlp.experts.{IDLE}.down_proj"]
    assert idle.moment is None
    assert [call.args[0].shape[-2] for call in idle.calls] == [48]


@pytest.mark.parametrize("method", ["awq", "awq+"])
def test_an_expert_that_is_never_chosen_is_calibrated_all_the_same(tmp_path, method):
    """Finite, no worse than by rounding, its scales searched, and the report says that it was short of tokens."""
    _save_with_idle_expert(tmp_path / "model")
    report = quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method=method,
        calibration=str(write_text(tmp_path / "text.txt")),
        samples=10,
        sequence_length=64,
        options=AwqOptions(scale_steps=4, search_tokens=128, learn_steps=3 if method == "awq+" else 0),
    )
    assert report.blocks[1].short_experts >= 1
    short = sum(block.short_experts for block in report.blocks)
    assert any(warning.startswith(f"{short} experts in ") for warning in report.warnings)
    last = {group.name: group for group in report.blocks[1].groups}
    idle = last[f"mlp output of mlp.experts.{IDLE}.down_proj"]
    assert 0 < idle.loss < idle.loss_rtn
    for block in report.blocks:
        assert block.loss_after <= block.loss_before
        assert all(np.isfinite(group.loss) and group.loss <= group.loss_rtn for group in block.groups)
    score = evaluate_torch(
        str(tmp_path / "q"), tmp_path / "text.txt", context=64, tokens=300, reference=str(tmp_path / "model")
    )
    assert np.isfinite(score["kl_divergence"])


def test_nothing_is_said_where_every_expert_had_enough(tmp_path):
    save_tiny_model(tmp_path / "model", "mixtral", num_experts_per_tok=4)
    report = quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method="awq",
        calibration=str(write_text(tmp_path / "text.txt")),
        samples=2,
        sequence_length=64,
        options=AwqOptions(scale_steps=1, search_tokens=64),
    )
    assert not any("experts" in warning for warning in report.warnings)
    assert all(block.short_experts == 0 for block in report.blocks)


def test_all_mixtures_are_tried():
    assert {name for name in ALL_FAMILIES if "experts" in str(ALL_FAMILIES[name])} == set(MIXTURES)
