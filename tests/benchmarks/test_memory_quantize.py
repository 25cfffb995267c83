"""A slice of a large model, made small: written, quantized in a process of its own, measured."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from awq_tvm.checkpoint import open_checkpoint
from benchmarks.memory_quantize import main, write_model

SMALL = {"blocks": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "vocabulary": 300}


def test_the_model_is_whole(tmp_path):
    write_model(tmp_path / "model", argparse.Namespace(**SMALL))
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    assert len(checkpoint.tensors) == 3 + 2 * 9
    assert {info.dtype for info in checkpoint.tensors.values()} == {"bfloat16"}
    weight = checkpoint.read("model.layers.1.mlp.down_proj.weight").astype(np.float32)
    assert weight.shape == (64, 128)
    assert 0.9 < weight.std() * 128**0.5 < 1.1


@pytest.mark.slow
def test_one_line(capsys):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    arguments = [*sizes, "--samples=2", "--sequence-length=32", "--threads=1"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["blocks"] == len(found["seconds_per_block"]) == 2
    assert 0.1 < found["peak_gib"] < 2
    assert 0 < found["peak_anonymous_gib"] <= found["peak_gib"]
    assert main([*arguments, "--bar", "0.01"]) == 1
    capsys.readouterr()
    assert main([*arguments, "--timeout", "0.5"]) == 1
    assert "took too long" in capsys.readouterr().err
