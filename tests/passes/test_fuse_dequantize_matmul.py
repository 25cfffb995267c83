from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
from tvm.script import relax as R

from awq_tvm.passes.fuse_dequantize_matmul import FuseDequantizeMatmul

from .modules import SPEC, Functions, assert_same, dense, quantized

n = TypeVar("n")
functions = Functions()
dequantize = functions.dequantize()
dense_matmul = functions.dense_matmul()
plain = functions.dequantize_matmul()
biased = functions.dequantize_matmul(replace(SPEC, has_bias=True))
with_residual = functions.dequantize_matmul(replace(SPEC, has_residual=True))
activated = functions.dequantize_matmul(replace(SPEC, activation_function="relu"))
whole = {
    name: functions.dequantize_matmul(
        replace(SPEC, has_bias=True, activation_function=name, has_residual=True)
    )
    for name in ("silu", "gelu", "gelu_tanh", "relu")
}
PLAN = quantized("w", "w")


def test_fuses_a_linear_without_epilogue() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(plain, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    assert_same(FuseDequantizeMatmul()(functions.module(before, PLAN)), functions.module(expected, PLAN))


def whole_epilogue(activation, residual_first: bool):
    """z = activation(x @ W.T + b) + r, the residual on either side."""

    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        r: R.Tensor((n, 24), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            shifted = R.add(y, b)
            active = activation(shifted)
            z = R.add(r if residual_first else active, active if residual_first else r)
            R.output(z)
        return z

    return before


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("name", whole)
def test_fuses_bias_activation_and_residual(name: str, residual_first: bool) -> None:
    activation = {"silu": R.nn.silu, "gelu": R.nn.gelu, "gelu_tanh": R.nn.gelu_tanh, "relu": R.nn.relu}[name]
    fused = whole[name]

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        r: R.Tensor((n, 24), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            z = R.call_tir(
                fused, (x, w_qweight, w_scales, w_zeros, b, r), out_ty=R.Tensor((n, 24), "float32")
            )
            R.output(z)
        return z

    plan = {**PLAN, "b": dense("w.bias")}
    before = functions.module(whole_epilogue(activation, residual_first), plan)
    assert_same(FuseDequantizeMatmul()(before), functions.module(expected, plan))


def test_leaves_a_step_whose_input_has_another_use() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            shifted = R.add(y, b)
            active = R.nn.silu(shifted)
            z = R.multiply(active, shifted)
            R.output(z)
        return z

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            shifted = R.call_tir(
                biased, (x, w_qweight, w_scales, w_zeros, b), out_ty=R.Tensor((n, 24), "float32")
            )
            active = R.nn.silu(shifted)
            z = R.multiply(active, shifted)
            R.output(z)
        return z

    plan = {**PLAN, "b": dense("w.bias")}
    assert_same(FuseDequantizeMatmul()(functions.module(before, plan)), functions.module(expected, plan))


def test_leaves_a_residual_of_another_shape() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        r: R.Tensor((1, 24), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            z = R.add(y, r)
            R.output(z)
        return z

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        r: R.Tensor((1, 24), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.call_tir(plain, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
            z = R.add(y, r)
            R.output(z)
        return z

    assert_same(FuseDequantizeMatmul()(functions.module(before, PLAN)), functions.module(expected, PLAN))


def test_leaves_what_stands_in_another_order() -> None:
    """A bias after the activation, and a second activation, are no part of the epilogue."""

    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            active = R.nn.relu(y)
            twice = R.nn.silu(active)
            z = R.add(twice, b)
            R.output(z)
        return z

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
        b: R.Tensor((24,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            active = R.call_tir(
                activated, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32")
            )
            twice = R.nn.silu(active)
            z = R.add(twice, b)
            R.output(z)
        return z

    plan = {**PLAN, "b": dense("w.bias")}
    assert_same(FuseDequantizeMatmul()(functions.module(before, plan)), functions.module(expected, plan))


def test_the_sum_of_two_quantized_linears_fuses_both() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        v_qweight: R.Tensor((24, 16), "uint8"),
        v_scales: R.Tensor((24, 2), "float16"),
        v_zeros: R.Tensor((24, 2), "uint8"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            v = R.call_tir(dequantize, (v_qweight, v_scales, v_zeros), out_ty=R.Tensor((24, 32), "float32"))
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(dense_matmul, (x, v), out_ty=R.Tensor((n, 24), "float32"))
            z = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            total = R.add(y, z)
            R.output(total)
        return total

    second = functions.dequantize_matmul(replace(SPEC, has_residual=True), name="dequantize_matmul1")

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        v_qweight: R.Tensor((24, 16), "uint8"),
        v_scales: R.Tensor((24, 2), "float16"),
        v_zeros: R.Tensor((24, 2), "uint8"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            z = R.call_tir(plain, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
            total = R.call_tir(
                second, (x, v_qweight, v_scales, v_zeros, z), out_ty=R.Tensor((n, 24), "float32")
            )
            R.output(total)
        return total

    plan = {**quantized("v", "v"), **PLAN}
    assert_same(FuseDequantizeMatmul()(functions.module(before, plan)), functions.module(expected, plan))


def test_leaves_an_unquantized_linear() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"), w: R.Tensor((24, 32), "float32"), b: R.Tensor((24,), "float32")
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(dense_matmul, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            z = R.add(y, b)
            R.output(z)
        return z

    mod = functions.module(before, {"w": dense("w.weight"), "b": dense("w.bias")})
    assert_same(FuseDequantizeMatmul()(mod), mod)
