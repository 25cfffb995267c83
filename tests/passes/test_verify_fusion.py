from __future__ import annotations

from typing import TypeVar

import pytest
import tvm
from tvm.script import relax as R

from awq_tvm.errors import UnsupportedError
from awq_tvm.passes.verify_fusion import VerifyFusion

from .modules import Functions, assert_same, quantized

n = TypeVar("n")
functions = Functions()
dequantize = functions.dequantize()
dequantize_matmul = functions.dequantize_matmul()


@R.function
def fused(
    x: R.Tensor((n, 32), "float32"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 2), "float16"),
    w_zeros: R.Tensor((24, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        y = R.call_tir(
            dequantize_matmul, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32")
        )
        R.output(y)
    return y


@R.function
def unfused(
    x: R.Tensor((n, 24), "float32"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 2), "float16"),
    w_zeros: R.Tensor((24, 2), "uint8"),
    v_qweight: R.Tensor((24, 16), "uint8"),
    v_scales: R.Tensor((24, 2), "float16"),
    v_zeros: R.Tensor((24, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
        v = R.call_tir(dequantize, (v_qweight, v_scales, v_zeros), out_ty=R.Tensor((24, 32), "float32"))
        both = R.add(w, v)
        y = R.matmul(x, both)
        R.output(y)
    return y


def test_returns_a_fused_module_as_it_is() -> None:
    mod = functions.module(fused, quantized("w", "model.layers.0.mlp.up_proj"))
    assert_same(VerifyFusion()(mod), mod)


def test_names_every_layer_left_unfused() -> None:
    combined = ("model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj")
    plan = {**quantized("w", "model.layers.0.mlp.up_proj"), **quantized("v", *combined)}
    with pytest.raises(UnsupportedError, match="not fused") as caught:
        VerifyFusion().transform_module(functions.module(unfused, plan), tvm.transform.PassContext())
    assert caught.value.where == ", ".join(["model.layers.0.mlp.up_proj", *combined])
    assert "--opt 0" in (caught.value.fix or "")
