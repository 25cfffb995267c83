"""Small modules for the tests of the passes: TVMScript for the Relax function, references for the PrimFuncs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax, tirx

from awq_tvm import ir_attrs
from awq_tvm.models.config import ModelConfig
from awq_tvm.models.export import Limits, export_model
from awq_tvm.models.precision import Precision, QuantizedShape
from awq_tvm.schedules import reference
from awq_tvm.schedules.layout import DENSE_LAYOUTS, LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, ParameterPlan, QuantizedSource, Source
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target, resolve

X86 = resolve("x86-64-v4-vnni")
"""A fixed target, so that the tests say the same on every machine; nothing here is executed."""

SPEC = MatmulSpec(32, 24, 4, 16, "float32")
"""W[24, 32] in groups of 16: qweight uint8 [24, 16], scales float16 [24, 2], zeros uint8 [24, 2]."""


class Functions:
    """PrimFuncs under the names by which TVMScript calls them."""

    def __init__(self) -> None:
        self.by_variable: dict[Any, tirx.PrimFunc] = {}

    def add(self, name: str, func: tirx.PrimFunc) -> Any:
        """The GlobalVar to call."""
        variable = relax.BlockBuilder().add_func(func, name)
        self.by_variable[variable] = func
        return variable

    def dequantize(self, spec: MatmulSpec = SPEC, name: str = "dequantize", layout: str = "row") -> Any:
        return self.add(name, reference.dequantize(spec, LAYOUTS[layout]))

    def dequantize_matmul(
        self, spec: MatmulSpec = SPEC, name: str = "dequantize_matmul", layout: str = "row"
    ) -> Any:
        return self.add(name, reference.dequantize_matmul(spec, LAYOUTS[layout]))

    def dequantize_take(self, spec: MatmulSpec = SPEC, layout: str = "row") -> Any:
        return self.add("dequantize_take", reference.dequantize_take(spec, LAYOUTS[layout]))

    def dense_matmul(
        self, weight_dtype: str = "float32", name: str = "dense_matmul", shape: tuple[int, int] = (24, 32)
    ) -> Any:
        return self.add(name, reference.dense_matmul(DenseSpec(shape[1], shape[0], weight_dtype, "float32")))

    def dense_packed(
        self, name: str, shape: tuple[int, int], weight_dtype: str, dtype: str = "float32"
    ) -> Any:
        """ "dense_matmul..." or "dense_take...", W[shape] in the layout "dense16"."""
        make = reference.dense_take if name.startswith("dense_take") else reference.dense_matmul
        spec = DenseSpec(shape[1], shape[0], weight_dtype, dtype)
        return self.add(name, make(spec, DENSE_LAYOUTS["dense16"]))

    def module(self, forward: relax.Function, plan: Mapping[str, Source]) -> tvm.IRModule:
        """The functions that ``forward`` calls, itself, and a plan of its weights."""
        called = {v: f for v, f in self.by_variable.items() if v in _called(forward)}
        mod = tvm.IRModule({"forward": forward.with_attr("global_symbol", "forward"), **called})
        return mod.with_attr(ir_attrs.PARAMETER_PLAN, ParameterPlan(dict(plan)).to_json())


def _called(forward: relax.Function) -> set[Any]:
    found: set[Any] = set()
    relax.analysis.post_order_visit(
        forward, lambda e: found.add(e) if isinstance(e, tvm.ir.GlobalVar) else None
    )
    return found


def quantized(prefix: str, *modules: str, spec: MatmulSpec = SPEC, layout: str = "row") -> dict[str, Source]:
    """The plan of one weight's arrays: parameters "<prefix>_qweight" and so on."""
    names = [f"{prefix}_{array.suffix}" for array in LAYOUTS[layout].arrays(spec)]
    return {name: QuantizedSource(modules, spec.to_json(), layout, i) for i, name in enumerate(names)}


def dense(*tensors: str, dtype: str = "float32") -> DenseSource:
    """The plan of an unquantized weight."""
    return DenseSource(tensors, dtype)


def plan_of(mod: tvm.IRModule) -> dict[str, Source]:
    """The module's parameter plan."""
    return ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN]).sources


def assert_same_functions(found: tvm.IRModule, expected: tvm.IRModule) -> None:
    """Structurally equal apart from the modules' attributes."""
    tvm.ir.assert_structural_equal(_bare(found), _bare(expected))


def assert_same(found: tvm.IRModule, expected: tvm.IRModule) -> None:
    """Structurally equal, with the same sources of the weights in the same order."""
    assert_same_functions(found, expected)
    assert list(plan_of(found).values()) == list(plan_of(expected).values())
    assert_in_step(found)


def assert_in_step(mod: tvm.IRModule) -> None:
    """The plan names the weight parameters of ``forward``, and its sources have their shapes."""
    forward = mod["forward"]
    weights = forward.params[int(forward.attrs["num_input"]) :]
    plan = plan_of(mod)
    assert [w.name for w in weights] == list(plan)
    for weight in weights:
        source = plan[weight.name]
        assert isinstance(source, DenseSource | QuantizedSource)
        if isinstance(source, DenseSource):
            assert str(weight.ty.dtype) == source.dtype
            assert (weight.ty.ndim == 3) == (source.layout is not None)
            continue
        array = LAYOUTS[source.layout].arrays(MatmulSpec.from_json(source.spec))[source.array]
        assert tuple(int(extent) for extent in weight.ty.shape) == array.shape
        assert str(weight.ty.dtype) == array.dtype


def _bare(mod: tvm.IRModule) -> tvm.IRModule:
    return tvm.IRModule(dict(mod.functions_items()))


def exported(
    quantized_bits: int | None = 4, *, embedding: bool = False, target: Target = X86, **changes: Any
) -> tvm.IRModule:
    """A one-layer Llama, hidden size 32, as the models hand it to the passes."""
    fields = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "tie_word_embeddings": True,
    }
    config = ModelConfig.from_hugging_face({**fields, **changes})
    names = [f"self_attn.{part}_proj" for part in "qkvo"] + ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    linears = [f"model.layers.0.{name}" for name in names] + ["model.embed_tokens"] * embedding
    shapes = {} if quantized_bits is None else dict.fromkeys(linears, QuantizedShape(quantized_bits, 16))
    with tvm.target.Target(target.tvm_target_with_host) as tvm_target:
        return export_model(config, Precision("float32", "float16", "float", shapes), Limits(64), tvm_target)
