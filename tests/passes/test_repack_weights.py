from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tvm.script import relax as R

from awq_tvm import ir_attrs
from awq_tvm.passes.repack_weights import RepackWeights
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.parameter_plan import QuantizedSource

from .modules import SPEC, X86, Functions, assert_in_step, assert_same, dense, plan_of, quantized

n = TypeVar("n")
functions = Functions()
BIASED = replace(SPEC, has_bias=True)
row = functions.dequantize_matmul(BIASED)
row_take = functions.dequantize_take()
packed_functions = Functions()
packed = packed_functions.dequantize_matmul(BIASED, name="dequantize_matmul1", layout="paired_blocks")


@R.function
def one_linear(
    x: R.Tensor((n, 32), "float32"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 2), "float16"),
    w_zeros: R.Tensor((24, 2), "uint8"),
    b: R.Tensor((24,), "float32"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        y = R.call_tir(row, (x, w_qweight, w_scales, w_zeros, b), out_ty=R.Tensor((n, 24), "float32"))
        R.output(y)
    return y


def test_gives_a_weight_the_layout_of_the_rule() -> None:
    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        b: R.Tensor((24,), "float32"),
        w_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
        w_scales: R.Tensor((1, 2, 2, 16), "float16"),
        w_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(packed, (x, w_qweight, w_scales, w_zeros, b), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    before = functions.module(one_linear, {**quantized("w", "w"), "b": dense("w.bias")})
    plan = {"b": dense("w.bias"), **quantized("w", "w", layout="paired_blocks")}
    assert_same(RepackWeights(X86)(before), packed_functions.module(expected, plan))


def test_a_table_that_is_looked_up_and_multiplied_by_is_stored_once() -> None:
    head = functions.dequantize_matmul(SPEC, name="head")

    @R.function
    def tied(
        ids: R.Tensor((n,), "int32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 2), "float16"),
        w_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            x = R.call_tir(row_take, (w_qweight, w_scales, w_zeros, ids), out_ty=R.Tensor((n, 32), "float32"))
            y = R.call_tir(head, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
            R.output(y)
        return y

    found = RepackWeights(X86)(functions.module(tied, quantized("w", "model.embed_tokens")))
    assert_in_step(found)
    assert [source.layout for source in plan_of(found).values()] == ["paired_blocks"] * 3
    ops = {
        f.attrs[ir_attrs.OP]: f.attrs[ir_attrs.LAYOUT]
        for f in found.functions.values()
        if ir_attrs.OP in f.attrs
    }
    assert ops == {"dequantize_take": "paired_blocks", "dequantize_matmul": "paired_blocks"}


def test_weights_of_two_linears_keep_their_own_names() -> None:
    second = functions.dequantize_matmul(SPEC, name="second")

    @R.function
    def two(
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
            a = R.call_tir(second, (x, v_qweight, v_scales, v_zeros), out_ty=R.Tensor((n, 24), "float32"))
            b = R.call_tir(second, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32"))
            y = R.multiply(a, b)
            R.output(y)
        return y

    found = RepackWeights(X86)(functions.module(two, {**quantized("v", "v"), **quantized("w", "w")}))
    assert_in_step(found)
    modules = [s.modules for s in plan_of(found).values() if isinstance(s, QuantizedSource)]
    assert modules == [("v",)] * 3 + [("w",)] * 3


def test_leaves_a_weight_that_no_rule_serves() -> None:
    spec = replace(SPEC, group_size=4)
    small_groups = functions.dequantize_matmul(spec, name="small_groups")

    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        w_qweight: R.Tensor((24, 16), "uint8"),
        w_scales: R.Tensor((24, 8), "float16"),
        w_zeros: R.Tensor((24, 8), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(
                small_groups, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float32")
            )
            R.output(y)
        return y

    assert LAYOUTS["row"].arrays(spec)[1].shape == (24, 8)
    mod = functions.module(before, quantized("w", "w", spec=spec))
    assert_same(RepackWeights(X86)(mod), mod)
