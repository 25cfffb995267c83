from __future__ import annotations

from typing import TypeVar

import pytest
from tvm.script import relax as R

from awq_tvm.passes.fuse_dequantize_take import FuseDequantizeTake

from .modules import Functions, assert_same, quantized

n = TypeVar("n")
functions = Functions()
dequantize = functions.dequantize()
dequantize_take = functions.dequantize_take()


def test_fuses_a_lookup_by_rows() -> None:
    @R.function
    def before(
        ids: R.Tensor((n,), "int32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
            y = R.take(w, ids, axis=0)
            R.output(y)
        return y

    @R.function
    def expected(
        ids: R.Tensor((n,), "int32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(
                dequantize_take, (w_qweight, w_scales, w_zeros, ids), out_ty=R.Tensor((n, 32), "float32")
            )
            R.output(y)
        return y

    plan = quantized("w", "model.embed_tokens")
    assert_same(FuseDequantizeTake()(functions.module(before, plan)), functions.module(expected, plan))


@R.function
def along_the_other_axis(
    ids: R.Tensor((n,), "int32"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 2), "float16"),
    w_zeros: R.Tensor((24, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
        y = R.take(w, ids, axis=1)
        R.output(y)
    return y


@R.function
def by_long_indices(
    ids: R.Tensor((n,), "int64"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 2), "float16"),
    w_zeros: R.Tensor((24, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
        y = R.take(w, ids, axis=0)
        R.output(y)
    return y


@R.function
def by_a_matrix_of_indices(
    ids: R.Tensor((2, n), "int32"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 2), "float16"),
    w_zeros: R.Tensor((24, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        w = R.call_tir(dequantize, (w_qweight, w_scales, w_zeros), out_ty=R.Tensor((24, 32), "float32"))
        y = R.take(w, ids, axis=0)
        R.output(y)
    return y


@pytest.mark.parametrize("before", [along_the_other_axis, by_long_indices, by_a_matrix_of_indices])
def test_leaves_other_lookups(before: object) -> None:
    mod = functions.module(before, quantized("w", "w"))
    assert_same(FuseDequantizeTake()(mod), mod)
