from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
from tvm.script import relax as R

from awq_tvm.passes.fuse_output_gate import FuseOutputGate
from awq_tvm.schedules.parameter_plan import QuantizedSource, Source
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve

from .modules import X86, Functions, assert_in_step, assert_same, assert_same_functions, plan_of, quantized

n = TypeVar("n")
SPEC = MatmulSpec(64, 48, 4, 32, "float16")
CUDA = resolve("cuda")
functions, wanted = Functions(), Functions()
linear = functions.dequantize_matmul(SPEC)
gated = wanted.dequantize_matmul(replace(SPEC, output_gate="silu"), name="dequantize_matmul1")
PLAN: dict[str, Source] = quantized("w", "gate", "up", spec=SPEC)


@R.function
def gate_and_up(
    x: R.Tensor((n, 64), "float16"),
    w_qweight: R.Tensor((48, 32), "uint8"),
    w_scales: R.Tensor((48, 2), "float16"),
    w_zeros: R.Tensor((48, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        gu = R.call_tir(linear, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 48), "float16"))
        gate = R.strided_slice(gu, axes=[1], begin=[0], end=[24])
        up = R.strided_slice(gu, axes=[1], begin=[24], end=[48])
        active = R.nn.silu(gate)
        y = R.multiply(active, up)
        R.output(y)
    return y


@R.function
def up_that_others_read(
    x: R.Tensor((n, 64), "float16"),
    w_qweight: R.Tensor((48, 32), "uint8"),
    w_scales: R.Tensor((48, 2), "float16"),
    w_zeros: R.Tensor((48, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        gu = R.call_tir(linear, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 48), "float16"))
        gate = R.strided_slice(gu, axes=[1], begin=[0], end=[24])
        up = R.strided_slice(gu, axes=[1], begin=[24], end=[48])
        active = R.nn.silu(gate)
        y = R.multiply(active, up)
        z = R.add(y, up)
        R.output(z)
    return z


@pytest.mark.parametrize("target", [CUDA, resolve("metal")], ids=lambda target: target.name)
def test_the_linear_gates_its_sums(target: Target) -> None:
    @R.function
    def expected(
        x: R.Tensor((n, 64), "float16"),
        w_qweight: R.Tensor((48, 32), "uint8"),
        w_scales: R.Tensor((48, 2), "float16"),
        w_zeros: R.Tensor((48, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(gated, (x, w_qweight, w_scales, w_zeros), out_ty=R.Tensor((n, 24), "float16"))
            R.output(y)
        return y

    found = FuseOutputGate(target)(functions.module(gate_and_up, PLAN))
    assert_same_functions(found, wanted.module(expected, PLAN))
    assert_in_step(found)
    text = replace(SPEC, output_gate="silu").to_json()
    sources = [QuantizedSource(("gate", "up"), text, "row", i, halves_in_turn=True) for i in range(3)]
    assert list(plan_of(found).values()) == sources


def test_leaves_halves_that_others_read() -> None:
    before = functions.module(up_that_others_read, PLAN)
    assert_same(FuseOutputGate(CUDA)(before), before)


@pytest.mark.parametrize("target", [X86, resolve("nvidia-t4")], ids=lambda target: target.name)
def test_leaves_what_the_target_has_no_kernel_for(target: Target) -> None:
    before = functions.module(gate_and_up, PLAN)
    assert_same(FuseOutputGate(target)(before), before)
