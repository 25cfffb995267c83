"""Small modules that the toolchain tests build."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.rule import Match, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

VOCABULARY, HIDDEN, GROUP = 96, 128, 32


def tensor(shape: tuple[Any, ...], dtype: str) -> Any:
    return relax.TensorType(shape, dtype)


def module_with(call: str) -> tvm.IRModule:
    """One kernel that calls a device function of the given name."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("bad")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "global_symbol": "bad"})
        y = T.match_buffer(T.arg("y_handle", T.handle()), (32,), "float32")
        with T.launch_thread("threadIdx.x", 32) as i:
            T.buffer_store(y, T.call_extern("float32", call, T.Cast("float32", i)), [i])
    return tvm.IRModule({"bad": builder.get()})


def matmul_module(target: Target, symbol: str = "mm") -> tuple[Any, MatmulSpec]:
    """One quantized linear as the rule of the target builds it."""
    spec = MatmulSpec(HIDDEN, 64, 4, GROUP, target.compute_dtype)
    rule, match = select(spec, target)
    assert isinstance(match, Match)
    func = rule.build(spec, target, match.config).with_attr("global_symbol", symbol)
    return tvm.IRModule({symbol: func}), spec


def relax_module(target: Target) -> Any:
    """Embedding, RMS norm and a quantized linear: our schedule beside those of TVM's own rules."""
    mod, spec = matmul_module(target)
    layout = select(spec, target)[0].layout(spec, target)
    builder = relax.BlockBuilder()
    linear = builder.add_func(mod["mm"].without_attr("global_symbol"), "linear")
    tokens = tvm.tirx.Var("n", "int64")
    dtype = target.compute_dtype
    ids = relax.Var("ids", tensor((tokens,), "int32"))
    table = relax.Var("table", tensor((VOCABULARY, HIDDEN), dtype))
    norm = relax.Var("norm", tensor((HIDDEN,), dtype))
    weights = [relax.Var(array.suffix, tensor(array.shape, array.dtype)) for array in layout.arrays(spec)]
    with builder.function("main", [ids, table, norm, *weights]):
        with builder.dataflow():
            embedded = builder.emit(relax.op.take(table, ids, axis=0))
            normed = builder.emit(relax.op.nn.rms_norm(embedded, norm, axes=[-1], epsilon=1e-5))
            y = builder.emit(relax.call_tir(linear, [normed, *weights], tensor((tokens, 64), dtype)))
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.get()
