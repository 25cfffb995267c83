"""export_checkpoint: nothing is lost on the way from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.checkpoint import (
    Checkpoint,
    QuantizationScheme,
    export_checkpoint,
    linears_to_quantize,
    open_checkpoint,
)
from awq_tvm.checkpoint.expected_tensors import expected_tensors
from awq_tvm.errors import UsageError

from .tiny_models import assert_same, gemv_arrays, gptq_arrays, random_weight, save_folder, tiny_config

SECTIONS: dict[str, dict[str, Any]] = {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": False,
        "checkpoint_format": "gptq_v2",
    },
    "gptq-symmetric": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True},
    "awq-gemv": {"quant_method": "awq", "version": "gemv", "bits": 4, "group_size": 32},
}


def foreign(path: Path, source: str) -> Checkpoint:
    """A folder in a format that is only read, its words packed by the loops of the tests."""
    config = tiny_config(hidden_size=64, intermediate_size=128, head_dim=16)
    linears = linears_to_quantize(config)
    shapes = expected_tensors(config) or {}
    weights = {
        name: np.ones(shape, np.float16)
        for name, shape in shapes.items()
        if name.removesuffix(".weight") not in linears
    }
    for at, (name, shape) in enumerate(linears.items()):
        weight = random_weight(shape, 4, 32, symmetric=source == "gptq-symmetric", seed=at)
        arrays = (
            gemv_arrays(weight)
            if source == "awq-gemv"
            else gptq_arrays(weight, 1 if source == "gptq-symmetric" else 0)
        )
        weights |= {f"{name}.{suffix}": array for suffix, array in arrays.items()}
    folder = save_folder(path, config | {"quantization_config": SECTIONS[source]}, weights)
    (folder / "tokenizer.json").write_bytes(b"{}")
    return open_checkpoint(folder)


@pytest.mark.parametrize("source", SECTIONS)
@pytest.mark.parametrize("format", ["awq", "awq-gemv-fast", "llm-awq", "compressed-tensors"])
def test_every_value_survives(tmp_path: Path, source: str, format: str) -> None:
    checkpoint = foreign(tmp_path / "a", source)
    assert checkpoint.format == source.removesuffix("-symmetric")
    first = export_checkpoint(tmp_path / "b", checkpoint, format=format)
    second = export_checkpoint(tmp_path / "c", open_checkpoint(first), format="compressed-tensors")
    for path in (first, second):
        back = open_checkpoint(path)
        assert back.side_files == {"tokenizer.json": b"{}"}
        assert set(back.quantized) == set(checkpoint.quantized)
        for at, name in enumerate(linears_to_quantize(checkpoint.config)):
            weight = checkpoint.read_quantized(name)
            assert_same(back.read_quantized(name), weight)
            expected = random_weight(weight.q.shape, 4, 32, symmetric=source == "gptq-symmetric", seed=at)
            assert_same(weight, expected)
    assert open_checkpoint(first).format == format


def test_refusals(tmp_path: Path) -> None:
    checkpoint = foreign(tmp_path / "a", "gptq")
    with pytest.raises(UsageError, match="no format 'gptq' is exported to"):
        export_checkpoint(tmp_path / "b", checkpoint, format="gptq")
    config = tiny_config()
    shapes = expected_tensors(config) or {}
    dense = save_folder(tmp_path / "d", config, {name: np.ones(s, np.float16) for name, s in shapes.items()})
    with pytest.raises(UsageError, match="the model is not quantized"):
        export_checkpoint(tmp_path / "b", open_checkpoint(dense), format="awq")
    assert not (tmp_path / "b").exists()
    assert checkpoint.scheme == QuantizationScheme(4, 32, True, ("lm_head",))
