"""What is measured block by block is what rounding costs at the end of the model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.progress import ignore_progress
from awq_tvm.quantize.bit_allocation import WIDTHS
from awq_tvm.quantize.block_calls import end_of_model
from awq_tvm.quantize.families import family_of
from awq_tvm.quantize.group_quantize import Rounding, round_trip
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.sensitivity import measure_sensitivities
from tests.quantize.tiny_models import save_tiny_model, tiny_model

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "intermediate_size": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt_neox"])
def test_the_end_of_a_model_is_what_follows_its_blocks(model_type):
    """Also where blocks return tuples."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES)).eval()
    family, ids = family_of(model.config.to_dict()), torch.arange(10).unsqueeze(0)
    left = []
    last = list(model.get_submodule(family.blocks).children())[-1]
    last.register_forward_hook(lambda _module, _inputs, output: left.append(output))
    with torch.no_grad():
        wanted = model.get_submodule(family.base)(input_ids=ids).last_hidden_state
        as_tuple = isinstance(left[0], tuple)
        hidden = left[0][0] if as_tuple else left[0]
        found = end_of_model(model, family, ids, hidden, as_tuple=as_tuple)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("symmetric", [False, True])
def test_costs_are_those_at_the_end_of_the_model(tmp_path, symmetric):
    """Without a search: each set of linears rounded alone in the whole model changes its output by about the cost.

    They differ by the random model, in which a change grows less the larger it is; over all sets and widths the costs
    themselves differ by a factor of a million.
    """
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    model = tiny_model("llama", num_hidden_layers=3)
    ids = torch.randint(0, 128, (3, 40), generator=torch.Generator().manual_seed(0))
    options = AwqOptions(scale_steps=0, clip="none", search_tokens=120)
    with torch.no_grad():
        measured = measure_sensitivities(
            open_checkpoint(str(tmp_path / "model")),
            ids.numpy(),
            Rounding(4, 32, symmetric),
            options=options,
            progress=ignore_progress,
        )
        wanted = model.model(ids).last_hidden_state
        assert [name for one in measured for name in one.linears] == [
            name
            for name, module in model.named_modules()
            if "layers" in name and hasattr(module, "weight") and module.weight.dim() == 2
        ]
        for one in measured:
            assert one.weights == sum(model.get_submodule(name).weight.numel() for name in one.linears)
            assert one.scales == one.weights // 32
            for bits in WIDTHS:
                rounded = {
                    f"{name.removeprefix('model.')}.weight": round_trip(
                        model.get_submodule(name).weight, Rounding(bits, 32, symmetric)
                    )
                    for name in one.linears
                }
                change = torch.func.functional_call(model.model, rounded, (ids,)).last_hidden_state - wanted
                true = float((change.square().sum(-1) / wanted.square().sum(-1)).mean())
                assert true / 5 < one.losses[bits] < true * 5, (one.linears, bits)
