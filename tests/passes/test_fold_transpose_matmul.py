from __future__ import annotations

from typing import TypeVar

from tvm.script import relax as R

from awq_tvm.passes.fold_transpose_matmul import FoldTransposeMatmul

from .modules import Functions, assert_same, dense, quantized

n = TypeVar("n")
functions = Functions()
dequantize = functions.dequantize()
from_half = functions.dense_matmul("float16")
from_single = functions.dense_matmul("float32")


def test_folds_the_transpose_and_the_cast_of_a_half_precision_weight() -> None:
    @R.function
    def before(x: R.Tensor((n, 32), "float32"), w: R.Tensor((24, 32), "float16")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            wide = R.astype(w, "float32")
            turned = R.permute_dims(wide, [1, 0])
            y = R.matmul(x, turned)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((n, 32), "float32"), w: R.Tensor((24, 32), "float16")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(from_half, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    plan = {"w": dense("w.weight", dtype="float16")}
    found = FoldTransposeMatmul()(functions.module(before, plan))
    assert_same(found, functions.module(expected, plan))


def test_folds_the_transpose_of_a_dequantized_weight() -> None:
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
            turned = R.permute_dims(w)
            y = R.matmul(x, turned)
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
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.call_tir(from_single, (x, w), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    plan = quantized("w", "w")
    found = FoldTransposeMatmul()(functions.module(before, plan))
    assert_same(found, functions.module(expected, plan))


def test_leaves_a_weight_that_is_not_transposed() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"), w: R.Tensor((32, 24), "float32"), v: R.Tensor((24, 8), "float32")
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, w)
            same = R.permute_dims(v, [0, 1])
            z = R.matmul(y, same)
            R.output(z)
        return z

    mod = functions.module(before, {"w": dense("w.weight"), "v": dense("v.weight")})
    assert_same(FoldTransposeMatmul()(mod), mod)


def test_leaves_a_matmul_of_three_dimensions() -> None:
    @R.function
    def before(x: R.Tensor((2, n, 32), "float32"), w: R.Tensor((24, 32), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            turned = R.permute_dims(w, [1, 0])
            y = R.matmul(x, turned)
            R.output(y)
        return y

    mod = functions.module(before, {"w": dense("w.weight")})
    assert_same(FoldTransposeMatmul()(mod), mod)


def test_leaves_a_matmul_of_two_activations() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"), k: R.Tensor((24, 32), "float32"), w: R.Tensor((32,), "float32")
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            itself = R.permute_dims(x, [1, 0])
            scores = R.matmul(x, itself)
            keys = R.add(k, w)
            turned = R.permute_dims(keys, [1, 0])
            y = R.matmul(x, turned)
            z = R.matmul(scores, y)
            R.output(z)
        return z

    mod = functions.module(before, {"w": dense("w.bias")})
    assert_same(FoldTransposeMatmul()(mod), mod)
