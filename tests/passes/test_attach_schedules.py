from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar

import tvm
from tvm.script import relax as R

from awq_tvm import ir_attrs
from awq_tvm.passes.attach_schedules import AttachSchedules
from awq_tvm.schedules.rule import select

from .modules import SPEC, X86, Functions, quantized

n = TypeVar("n")
functions = Functions()
served = functions.dequantize_matmul(layout="paired_blocks")
UNSERVED = replace(SPEC, group_size=4, has_residual=True)
unserved = functions.dequantize_matmul(UNSERVED, name="unserved")


@R.function
def forward(
    x: R.Tensor((n, 32), "float32"),
    v_qweight: R.Tensor((1, 4, 2, 16, 4), "uint8"),
    v_scales: R.Tensor((1, 2, 2, 16), "float16"),
    v_zeros: R.Tensor((1, 2, 2, 16), "uint8"),
    w_qweight: R.Tensor((24, 16), "uint8"),
    w_scales: R.Tensor((24, 8), "float16"),
    w_zeros: R.Tensor((24, 8), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        a = R.call_tir(served, (x, v_qweight, v_scales, v_zeros), out_ty=R.Tensor((n, 24), "float32"))
        b = R.call_tir(served, (x, v_qweight, v_scales, v_zeros), out_ty=R.Tensor((n, 24), "float32"))
        c = R.multiply(a, b)
        y = R.call_tir(unserved, (x, w_qweight, w_scales, w_zeros, c), out_ty=R.Tensor((n, 24), "float32"))
        R.output(y)
    return y


MODULE = functions.module(
    forward, {**quantized("v", "v", layout="paired_blocks"), **quantized("w", "w", spec=UNSERVED)}
)


def test_puts_in_the_kernel_of_the_rule_and_leaves_the_rest() -> None:
    found = AttachSchedules(X86)(MODULE)
    rule, match = select(SPEC, X86)
    assert rule is not None
    kernel = rule.build(SPEC, X86, match.config).without_attr("global_symbol")
    tvm.ir.assert_structural_equal(found["dequantize_matmul"], kernel)
    assert found["dequantize_matmul"].attrs[ir_attrs.IS_SCHEDULED]
    assert found["dequantize_matmul"].attrs[ir_attrs.SCHEDULE] == rule.name
    tvm.ir.assert_structural_equal(found["unserved"], MODULE["unserved"])
    tvm.ir.assert_structural_equal(found["forward"], MODULE["forward"])


def test_coverage_counts_the_calls_and_gives_the_reasons() -> None:
    coverage = {
        kernel["name"]: kernel for kernel in json.loads(AttachSchedules(X86)(MODULE).attrs[ir_attrs.COVERAGE])
    }
    good = coverage["24x32 w4 g16 float"]
    assert (good["count"], good["source"]) == (2, "default")
    bad = coverage["24x32 w4 g4 float +residual"]
    assert (bad["count"], bad["source"]) == (1, "fallback")
    assert "group size 4 is not a multiple of 8" in bad["reason"]
