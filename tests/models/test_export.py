"""The exported module: what it refuses, its parameters and their plan."""

from __future__ import annotations

from typing import Any

import pytest
import tvm

from awq_tvm import ir_attrs
from awq_tvm.errors import UnsupportedError
from awq_tvm.models.config import ModelConfig
from awq_tvm.models.export import Limits, export_model
from awq_tvm.models.precision import Precision, QuantizedShape
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, ParameterPlan, QuantizedSource
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
DENSE = Precision("float32", "float16")


def _export(
    precision: Precision = DENSE, context_length: int = 64, target: str = "x86-64-v4", **changes: Any
) -> tvm.IRModule:
    config = ModelConfig.from_hugging_face({**BASE, **changes})
    with tvm.target.Target(resolve(target).tvm_target_with_host) as tvm_target:
        return export_model(config, precision, Limits(context_length), tvm_target)


def _plan(mod: tvm.IRModule) -> ParameterPlan:
    return ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="model_type 'gpt_bigcode' is not supported") as caught:
        _export(model_type="gpt_bigcode")
    assert caught.value.fix == "use one of: llama, mistral, qwen2, qwen3"


def test_a_context_longer_than_the_window_of_some_layers_is_refused() -> None:
    some = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    _export(model_type="mistral", **some)
    with pytest.raises(
        UnsupportedError, match="context length 65 is longer than the sliding window 64"
    ) as caught:
        _export(model_type="mistral", context_length=65, **some)
    assert "--context-length 64" in (caught.value.fix or "")
    # Where nothing is said of layers, a family of which all have one.
    _export(model_type="mistral", sliding_window=64, context_length=65)
    with pytest.raises(UnsupportedError, match="longer than the sliding window"):
        _export(model_type="qwen2", sliding_window=64, context_length=65)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_plan_reads_every_tensor_once(family: str, tied: bool) -> None:
    from awq_tvm.checkpoint.config import normalise_config
    from awq_tvm.checkpoint.expected_tensors import expected_tensors

    fields = {
        "model_type": family,
        "tie_word_embeddings": tied,
        "head_dim": 16,
        "attention_bias": family == "llama",
    }
    expected = expected_tensors(normalise_config({**BASE, **fields, "num_key_value_heads": 2}, "test"))
    assert expected is not None
    mod = _export(**fields, num_key_value_heads=2)
    sources = _plan(mod).sources.values()
    names = [name for source in sources if isinstance(source, DenseSource) for name in source.tensors]
    assert sorted(names) == sorted(expected)
    weights = mod["forward"].params[int(mod["forward"].attrs["num_input"]) :]
    assert [tuple(map(int, w.ty.shape)) for w in weights] == [expected[name] for name in names]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_quantized_linears_have_the_arrays_of_the_row_layout(bits: int) -> None:
    linear = "model.layers.1.mlp.down_proj"
    mod = _export(Precision("float32", "float16", quantized={linear: QuantizedShape(bits, 32)}))
    found = {
        name: source for name, source in _plan(mod).sources.items() if isinstance(source, QuantizedSource)
    }
    spec = MatmulSpec(96, 64, bits, 32, "float32")
    arrays = LAYOUTS["row"].arrays(spec)
    assert [source.array for source in found.values()] == [0, 1, 2]
    parameters = {p.name: p for p in mod["forward"].params}
    for (name, source), array in zip(found.items(), arrays, strict=True):
        assert source.modules == (linear,)
        assert MatmulSpec.from_json(source.spec) == spec
        assert tuple(map(int, parameters[name].ty.shape)) == array.shape
        assert str(parameters[name].ty.dtype) == array.dtype


def test_precision_and_bounds_are_in_the_module() -> None:
    mod = _export(Precision("float16", "bfloat16"), target="cuda")
    dtypes = {str(p.ty.dtype) for p in mod["forward"].params[3:]}
    assert dtypes == {"bfloat16", "float16"}
    bounds = {name: int(value) for name, value in mod["forward"].attrs["tir_var_upper_bound"].items()}
    assert bounds == {"n": 512, "m": 128}
    assert str(mod["forward"].ret_ty.fields[0].dtype) == "float32"
    assert not mod["create_kv_cache"].params
