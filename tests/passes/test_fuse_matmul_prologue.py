from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
import tvm
from tvm.script import relax as R

from awq_tvm.passes import pipeline
from awq_tvm.passes.fuse_matmul_prologue import FuseMatmulPrologue
from awq_tvm.schedules.parameter_plan import Source
from awq_tvm.targets import Target, resolve

from .modules import SPEC, X86, Functions, assert_same, dense, exported, quantized

n = TypeVar("n")
LAYOUT = "paired_blocks"
functions = Functions()
plain = functions.dequantize_matmul(SPEC, layout=LAYOUT)
biased = functions.dequantize_matmul(replace(SPEC, has_bias=True), name="biased", layout=LAYOUT)
wanted = Functions()
normalised = wanted.dequantize_matmul(
    replace(SPEC, has_bias=True, rms_norm_eps=1e-5), name="dequantize_matmul", layout=LAYOUT
)
gated = wanted.dequantize_matmul(replace(SPEC, gate="silu"), name="dequantize_matmul1", layout=LAYOUT)
PLAN: dict[str, Source] = {
    "norm": dense("norm"),
    **quantized("w", "w", layout=LAYOUT),
    "b": dense("w.bias"),
}
GATE_PLAN: dict[str, Source] = quantized("w", "w", layout=LAYOUT)


@R.function
def norm_and_linear(
    x: R.Tensor((n, 32), "float32"),
    norm: R.Tensor((32,), "float32"),
    w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
    w_scales: R.Tensor((1, 2, 2, 16), "float16"),
    w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
    b: R.Tensor((24,), "float32"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        h = R.nn.rms_norm(x, norm, axes=[-1], epsilon=1e-5)
        y = R.call_tir(biased, (h, w_qweight, w_scales, w_zeros, b), out_ty=R.Tensor((n, 24), "float32"))
        R.output(y)
    return y


@R.function
def gate_and_linear(
    x: R.Tensor((n, 64), "float32"),
    w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
    w_scales: R.Tensor((1, 2, 2, 16), "float16"),
    w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        gate = R.strided_slice(x, axes=[1], begin=[0], end=[32])
        up = R.strided_slice(x, axes=[1], begin=[32], end=[64])
        active = R.nn.silu(gate)
        h = R.multiply(active, up)
        y = R.call_tir(plain, (h, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
        R.output(y)
    return y


@R.function
def gate_of_the_second_half(
    x: R.Tensor((n, 64), "float32"),
    w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
    w_scales: R.Tensor((1, 2, 2, 16), "float16"),
    w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        gate = R.strided_slice(x, axes=[1], begin=[32], end=[64])
        up = R.strided_slice(x, axes=[1], begin=[0], end=[32])
        active = R.nn.silu(gate)
        h = R.multiply(active, up)
        y = R.call_tir(plain, (h, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
        R.output(y)
    return y


@R.function
def gate_that_others_read(
    x: R.Tensor((n, 64), "float32"),
    w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
    w_scales: R.Tensor((1, 2, 2, 16), "float16"),
    w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        gate = R.strided_slice(x, axes=[1], begin=[0], end=[32])
        up = R.strided_slice(x, axes=[1], begin=[32], end=[64])
        active = R.nn.silu(gate)
        h = R.multiply(active, up)
        y = R.call_tir(plain, (h, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
        z = R.sum(h)
        R.output(y, z)
    return y, z


def test_the_norm_goes_into_the_linear() -> None:
    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        norm: R.Tensor((32,), "float32"),
        w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
        w_scales: R.Tensor((1, 2, 2, 16), "float16"),
        w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(
                normalised, (x, w_qweight, w_scales, w_zeros, norm, b), out_ty=R.Tensor((n, 24), "float32")
            )
            R.output(y)
        return y

    before = functions.module(norm_and_linear, PLAN)
    assert_same(FuseMatmulPrologue(X86)(before), wanted.module(expected, PLAN))


def test_the_gate_goes_into_the_linear_after_it() -> None:
    @R.function
    def expected(
        x: R.Tensor((n, 64), "float32"),
        w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
        w_scales: R.Tensor((1, 2, 2, 16), "float16"),
        w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(gated, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    before = functions.module(gate_and_linear, GATE_PLAN)
    assert_same(FuseMatmulPrologue(X86)(before), wanted.module(expected, GATE_PLAN))


@pytest.mark.parametrize("function", [gate_of_the_second_half, gate_that_others_read])
def test_leaves_other_gates(function: tvm.relax.Function) -> None:
    before = functions.module(function, GATE_PLAN)
    assert_same(FuseMatmulPrologue(X86)(before), before)


@pytest.mark.parametrize(
    "target", [resolve("raspberry-pi-4"), resolve("cuda")], ids=lambda target: target.name
)
def test_leaves_what_the_target_has_no_kernel_for(target: Target) -> None:
    before = functions.module(norm_and_linear, PLAN)
    assert_same(FuseMatmulPrologue(target)(before), before)


def test_of_a_whole_model_nothing_but_matmuls_and_attention_is_left() -> None:
    """Each norm and the gate is inside the linear that reads it, but for the norm before an unquantized head."""
    found = pipeline.run(exported(), X86, 2, until="add_decode_step").script()
    assert found.count("R.nn.rms_norm") == 1
    assert found.count("R.nn.silu") == 0
    assert (
        pipeline.run(exported(8, embedding=True), X86, 2, until="add_decode_step").script().count("R.nn.")
        == 0
    )
