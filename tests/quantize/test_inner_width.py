"""MLPs whose width no group divides are widened by zeros, which changes nothing but the shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.quantize.inner_width import pad_inner_width
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import save_tiny_model, write_text


@pytest.mark.parametrize(
    ("width", "group_size", "padded"),
    [
        (128, "auto", 128),
        (96, "auto", 96),
        (100, "auto", 128),
        (172, "auto", 192),
        (172, 32, 192),
        (172, "32", 192),
        (160, 64, 192),
        # Inputs of 64 channels keep groups of 128 from fitting, whatever the width inside.
        (172, 128, 172),
        (172, -1, 172),
        (172, "many", 172),
    ],
)
def test_the_least_width_that_fits(tmp_path, width, group_size, padded):
    save_tiny_model(tmp_path / "model", "llama", intermediate_size=width)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    view = pad_inner_width(checkpoint, group_size)
    assert view.config["intermediate_size"] == padded
    assert (view is checkpoint) == (padded == width)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_wider_model_computes_the_same(tmp_path, family):
    original = save_tiny_model(tmp_path / "model", family, intermediate_size=100)
    view = pad_inner_width(open_checkpoint(str(tmp_path / "model")), "auto")
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        wanted, found = original(ids).logits, build_model(view).eval()(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for name in view.tensors:
        assert view.read(name).shape == view.tensors[name].shape


def test_a_family_without_a_table_stays_as_it_is(tmp_path):
    save_tiny_model(tmp_path / "model", "opt")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    assert pad_inner_width(checkpoint, "auto") is checkpoint


@pytest.mark.parametrize("method", ["rtn", "awq", "awq+"])
def test_the_quantized_model_is_wider_and_its_new_channels_are_zero(tmp_path, method):
    save_tiny_model(tmp_path / "model", "llama", intermediate_size=100)
    report = quantize_checkpoint(
        str(tmp_path / "model"),
        tmp_path / "q",
        method=method,
        group_size=64,
        calibration=str(write_text(tmp_path / "text.txt")),
        samples=3,
        sequence_length=32,
    )
    assert "MLPs were widened from 100 to 128 channels by zeros, for groups to fit" in report.warnings
    assert json.loads((tmp_path / "q" / "config.json").read_text())["intermediate_size"] == 128
    written = open_checkpoint(str(tmp_path / "q"))
    for index in range(2):
        gate, up, down = (
            written.read_quantized(f"model.layers.{index}.mlp.{name}_proj").dequantize()
            for name in ("gate", "up", "down")
        )
        assert not gate[100:].any()
        assert not up[100:].any()
        assert not down[:, 100:].any()
        assert np.abs(down[:, :100]).max() > 0


def test_without_padding_that_helps_the_sizes_that_fit_are_named(tmp_path):
    save_tiny_model(tmp_path / "model", "llama", intermediate_size=100)
    with pytest.raises(UsageError, match="fit all linears: -1"):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn", group_size=128)
