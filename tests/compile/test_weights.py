"""The plan carried out on a checkpoint: stacked, packed, cast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from awq_tvm.checkpoint import Checkpoint, open_checkpoint
from awq_tvm.compile.weights import packed_weights
from awq_tvm.errors import CheckpointError
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, ParameterPlan, QuantizedSource, Source
from awq_tvm.schedules.spec import MatmulSpec
from tests.support import tiny_decoder as tiny

LAYER = "model.layers.0.self_attn"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.make_model("llama", attention_bias=True)
    return tiny.save_quantized(model, tmp_path_factory.mktemp("weights") / "checkpoint")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


def _carry_out(checkpoint: Checkpoint, sources: dict[str, Source]) -> dict[str, np.ndarray[Any, Any]]:
    plan = ParameterPlan(sources)
    # The bundle's writer lets each array go before it asks for the next.
    return dict(packed_weights(checkpoint, ParameterPlan.from_json(plan.to_json())))


def test_dense_tensors_are_cast(checkpoint: Checkpoint) -> None:
    found = _carry_out(checkpoint, {"norm": DenseSource(("model.norm.weight",), "float16")})
    assert found["norm"].dtype == np.float16
    np.testing.assert_array_equal(found["norm"], checkpoint.read("model.norm.weight").astype(np.float16))


def test_dense_tensors_are_stacked_in_order(checkpoint: Checkpoint) -> None:
    names = tuple(f"{LAYER}.{part}_proj.bias" for part in "vqk")
    found = _carry_out(checkpoint, {"bias": DenseSource(names, "float32")})
    np.testing.assert_array_equal(found["bias"], np.concatenate([checkpoint.read(name) for name in names]))


@pytest.mark.parametrize("layout", ["row", "paired_blocks"])
def test_quantized_linears_are_stacked_and_packed(checkpoint: Checkpoint, layout: str) -> None:
    modules = tuple(f"{LAYER}.{part}_proj" for part in "qkv")
    parts = [checkpoint.read_quantized(module) for module in modules]
    spec = MatmulSpec(tiny.HIDDEN, sum(p.out_features for p in parts), 4, 32, "float32")
    arrays = LAYOUTS[layout].arrays(spec)
    plan: dict[str, Source] = {
        f"qkv.{array.suffix}": QuantizedSource(modules, spec.to_json(), layout, i)
        for i, array in enumerate(arrays)
    }
    found = _carry_out(checkpoint, plan)
    assert list(found) == list(plan)
    for array in arrays:
        assert found[f"qkv.{array.suffix}"].shape == array.shape
        assert str(found[f"qkv.{array.suffix}"].dtype) == array.dtype
    n, k = np.meshgrid(np.arange(spec.out_features), np.arange(spec.in_features), indexing="ij")
    code, scale, zero = LAYOUTS[layout].elements(spec, tuple(found.values()), n, k)
    whole = (code.astype(np.float32) - zero) * scale.astype(np.float32)
    np.testing.assert_array_equal(whole, np.concatenate([part.dequantize() for part in parts]))


@pytest.mark.parametrize("layout", ["mma_fragments", "simdgroup_rows"])
def test_rows_of_gate_and_up_come_in_turn(checkpoint: Checkpoint, layout: str) -> None:
    modules = tuple(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up"))
    gate, up = (checkpoint.read_quantized(module).dequantize() for module in modules)
    spec = MatmulSpec(tiny.HIDDEN, 2 * len(gate), 4, 32, "float16", output_gate="silu")
    plan: dict[str, Source] = {
        str(i): QuantizedSource(modules, spec.to_json(), layout, i, halves_in_turn=True) for i in range(3)
    }
    arrays = tuple(_carry_out(checkpoint, plan).values())
    n, k = np.meshgrid(np.arange(spec.out_features), np.arange(spec.in_features), indexing="ij")
    code, scale, zero = LAYOUTS[layout].elements(spec, arrays, n, k)
    whole = (code.astype(np.float32) - zero) * scale.astype(np.float32)
    np.testing.assert_array_equal(whole[0::2], gate)
    np.testing.assert_array_equal(whole[1::2], up)


def test_a_weight_too_large_for_its_dtype_is_refused(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in folder.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    weights = load_file(bad / "model.safetensors")
    weights["lm_head.weight"][3, 5] = -70000.0
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    plan: dict[str, Source] = {"head": DenseSource(("lm_head.weight",), "float16")}
    assert _carry_out(open_checkpoint(str(folder)), plan)["head"].dtype == np.float16
    with pytest.raises(CheckpointError, match="does not fit in float16") as caught:
        _carry_out(open_checkpoint(str(bad)), plan)
    assert caught.value.where == "lm_head.weight"
    assert "70000" in (caught.value.why or "")
