from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tvm.script import relax as R

from awq_tvm.passes.combine_parallel_linears import CombineParallelLinears
from awq_tvm.schedules.parameter_plan import DenseSource, QuantizedSource

from .modules import (
    SPEC,
    Functions,
    assert_in_step,
    assert_same,
    assert_same_functions,
    dense,
    plan_of,
    quantized,
)

n = TypeVar("n")
functions = Functions()
dequantize = functions.dequantize()
dequantize_eight = functions.dequantize(replace(SPEC, bits=8), name="dequantize8")
# The passes add the combined function under the same stem; TVM numbers it.
COMBINED = replace(SPEC, out_features=48)
combined_dequantize = functions.dequantize(COMBINED, name="dequantize1")


@R.function
def gate_and_up(
    x: R.Tensor((n, 32), "float32"),
    g_qweight: R.Tensor((24, 16), "uint8"),
    g_scales: R.Tensor((24, 2), "float16"),
    g_zeros: R.Tensor((24, 2), "uint8"),
    u_qweight: R.Tensor((24, 16), "uint8"),
    u_scales: R.Tensor((24, 2), "float16"),
    u_zeros: R.Tensor((24, 2), "uint8"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        g = R.call_tir(dequantize, (g_qweight, g_scales, g_zeros), out_ty=R.Tensor((24, 32), "float32"))
        gt = R.permute_dims(g, [1, 0])
        gate = R.matmul(x, gt)
        u = R.call_tir(dequantize, (u_qweight, u_scales, u_zeros), out_ty=R.Tensor((24, 32), "float32"))
        ut = R.permute_dims(u, [1, 0])
        up = R.matmul(x, ut)
        active = R.nn.silu(gate)
        y = R.multiply(active, up)
        R.output(y)
    return y


def test_two_linears_of_one_input_become_slices_of_one() -> None:
    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        gu_qweight: R.Tensor((48, 16), "uint8"),
        gu_scales: R.Tensor((48, 2), "float16"),
        gu_zeros: R.Tensor((48, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            gu = R.call_tir(
                combined_dequantize, (gu_qweight, gu_scales, gu_zeros), out_ty=R.Tensor((48, 32), "float32")
            )
            gut = R.permute_dims(gu, [1, 0])
            both = R.matmul(x, gut)
            gate = R.strided_slice(both, axes=[1], begin=[0], end=[24])
            up = R.strided_slice(both, axes=[1], begin=[24], end=[48])
            active = R.nn.silu(gate)
            y = R.multiply(active, up)
            R.output(y)
        return y

    before = functions.module(gate_and_up, {**quantized("g", "gate"), **quantized("u", "up")})
    after = functions.module(expected, quantized("gu", "gate", "up", spec=COMBINED))
    assert_same(CombineParallelLinears()(before), after)


@R.function
def biased_pair_concatenated(
    x: R.Tensor((n, 32), "float32"),
    q_qweight: R.Tensor((24, 16), "uint8"),
    q_scales: R.Tensor((24, 2), "float16"),
    q_zeros: R.Tensor((24, 2), "uint8"),
    q_bias: R.Tensor((24,), "float32"),
    k_qweight: R.Tensor((24, 16), "uint8"),
    k_scales: R.Tensor((24, 2), "float16"),
    k_zeros: R.Tensor((24, 2), "uint8"),
    k_bias: R.Tensor((24,), "float32"),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        wq = R.call_tir(dequantize, (q_qweight, q_scales, q_zeros), out_ty=R.Tensor((24, 32), "float32"))
        wqt = R.permute_dims(wq, [1, 0])
        q = R.matmul(x, wqt)
        qb = R.add(q, q_bias)
        wk = R.call_tir(dequantize, (k_qweight, k_scales, k_zeros), out_ty=R.Tensor((24, 32), "float32"))
        wkt = R.permute_dims(wk, [1, 0])
        k = R.matmul(x, wkt)
        kb = R.add(k, k_bias)
        y = R.concat([qb, kb], axis=1)
        R.output(y)
    return y


BIASED_PLAN = {
    **quantized("q", "q"),
    "q_bias": dense("q.bias"),
    **quantized("k", "k"),
    "k_bias": dense("k.bias"),
}


def test_a_concat_of_all_of_them_becomes_the_combined_result_and_biases_are_stacked() -> None:
    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        qk_qweight: R.Tensor((48, 16), "uint8"),
        qk_scales: R.Tensor((48, 2), "float16"),
        qk_zeros: R.Tensor((48, 2), "uint8"),
        qk_bias: R.Tensor((48,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w = R.call_tir(
                combined_dequantize, (qk_qweight, qk_scales, qk_zeros), out_ty=R.Tensor((48, 32), "float32")
            )
            wt = R.permute_dims(w, [1, 0])
            qk = R.matmul(x, wt)
            lv = R.add(qk, qk_bias)
            y: R.Tensor((n, 48), "float32") = lv
            R.output(y)
        return y

    found = CombineParallelLinears()(functions.module(biased_pair_concatenated, BIASED_PLAN))
    plan = {**quantized("qk", "q", "k", spec=COMBINED), "qk_bias": dense("q.bias", "k.bias")}
    assert_same(found, functions.module(expected, plan))


def test_a_concat_in_another_order_stays_one_of_slices() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        g_qweight: R.Tensor((24, 16), "uint8"),
        g_scales: R.Tensor((24, 2), "float16"),
        g_zeros: R.Tensor((24, 2), "uint8"),
        u_qweight: R.Tensor((24, 16), "uint8"),
        u_scales: R.Tensor((24, 2), "float16"),
        u_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            g = R.call_tir(dequantize, (g_qweight, g_scales, g_zeros), out_ty=R.Tensor((24, 32), "float32"))
            gt = R.permute_dims(g, [1, 0])
            gate = R.matmul(x, gt)
            u = R.call_tir(dequantize, (u_qweight, u_scales, u_zeros), out_ty=R.Tensor((24, 32), "float32"))
            ut = R.permute_dims(u, [1, 0])
            up = R.matmul(x, ut)
            y = R.concat([up, gate], axis=1)
            R.output(y)
        return y

    @R.function
    def expected(
        x: R.Tensor((n, 32), "float32"),
        gu_qweight: R.Tensor((48, 16), "uint8"),
        gu_scales: R.Tensor((48, 2), "float16"),
        gu_zeros: R.Tensor((48, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            gu = R.call_tir(
                combined_dequantize, (gu_qweight, gu_scales, gu_zeros), out_ty=R.Tensor((48, 32), "float32")
            )
            gut = R.permute_dims(gu, [1, 0])
            both = R.matmul(x, gut)
            gate = R.strided_slice(both, axes=[1], begin=[0], end=[24])
            up = R.strided_slice(both, axes=[1], begin=[24], end=[48])
            y = R.concat([up, gate], axis=1)
            R.output(y)
        return y

    plan = {**quantized("g", "gate"), **quantized("u", "up")}
    found = CombineParallelLinears()(functions.module(before, plan))
    assert_same(found, functions.module(expected, quantized("gu", "gate", "up", spec=COMBINED)))


def test_leaves_a_biased_beside_an_unbiased_linear() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        q_qweight: R.Tensor((24, 16), "uint8"),
        q_scales: R.Tensor((24, 2), "float16"),
        q_zeros: R.Tensor((24, 2), "uint8"),
        q_bias: R.Tensor((24,), "float32"),
        k_qweight: R.Tensor((24, 16), "uint8"),
        k_scales: R.Tensor((24, 2), "float16"),
        k_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            wq = R.call_tir(dequantize, (q_qweight, q_scales, q_zeros), out_ty=R.Tensor((24, 32), "float32"))
            wqt = R.permute_dims(wq, [1, 0])
            q = R.matmul(x, wqt)
            qb = R.add(q, q_bias)
            wk = R.call_tir(dequantize, (k_qweight, k_scales, k_zeros), out_ty=R.Tensor((24, 32), "float32"))
            wkt = R.permute_dims(wk, [1, 0])
            k = R.matmul(x, wkt)
            y = R.add(qb, k)
            R.output(y)
        return y

    plan = {name: source for name, source in BIASED_PLAN.items() if name != "k_bias"}
    mod = functions.module(before, plan)
    assert_same(CombineParallelLinears()(mod), mod)


def test_leaves_other_bits_other_inputs_and_unquantized_linears() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"),
        z: R.Tensor((n, 32), "float32"),
        a_qweight: R.Tensor((24, 16), "uint8"),
        a_scales: R.Tensor((24, 2), "float16"),
        a_zeros: R.Tensor((24, 2), "uint8"),
        b_qweight: R.Tensor((24, 32), "uint8"),
        b_scales: R.Tensor((24, 2), "float16"),
        b_zeros: R.Tensor((24, 2), "uint8"),
        c: R.Tensor((24, 32), "float32"),
        d: R.Tensor((24, 32), "float32"),
        e_qweight: R.Tensor((24, 16), "uint8"),
        e_scales: R.Tensor((24, 2), "float16"),
        e_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            wa = R.call_tir(dequantize, (a_qweight, a_scales, a_zeros), out_ty=R.Tensor((24, 32), "float32"))
            wat = R.permute_dims(wa, [1, 0])
            ya = R.matmul(x, wat)
            wb = R.call_tir(
                dequantize_eight, (b_qweight, b_scales, b_zeros), out_ty=R.Tensor((24, 32), "float32")
            )
            wbt = R.permute_dims(wb, [1, 0])
            yb = R.matmul(x, wbt)
            ct = R.permute_dims(c, [1, 0])
            yc = R.matmul(x, ct)
            dt = R.permute_dims(d, [1, 0])
            yd = R.matmul(x, dt)
            we = R.call_tir(dequantize, (e_qweight, e_scales, e_zeros), out_ty=R.Tensor((24, 32), "float32"))
            wet = R.permute_dims(we, [1, 0])
            ye = R.matmul(z, wet)
            y = R.concat([ya, yb, yc, yd, ye], axis=1)
            R.output(y)
        return y

    plan = {
        **quantized("a", "a"),
        **quantized("b", "b", spec=replace(SPEC, bits=8)),
        "c": dense("c.weight"),
        "d": dense("d.weight"),
        **quantized("e", "e"),
    }
    mod = functions.module(before, plan)
    assert_same(CombineParallelLinears()(mod), mod)


def test_a_residual_is_no_bias() -> None:
    """x + W x: the added variable is no parameter, so the sum stays outside."""

    @R.function
    def before(
        x: R.Tensor((n, 24), "float32"),
        z: R.Tensor((n, 32), "float32"),
        g_qweight: R.Tensor((24, 16), "uint8"),
        g_scales: R.Tensor((24, 2), "float16"),
        g_zeros: R.Tensor((24, 2), "uint8"),
        u_qweight: R.Tensor((24, 16), "uint8"),
        u_scales: R.Tensor((24, 2), "float16"),
        u_zeros: R.Tensor((24, 2), "uint8"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            g = R.call_tir(dequantize, (g_qweight, g_scales, g_zeros), out_ty=R.Tensor((24, 32), "float32"))
            gt = R.permute_dims(g, [1, 0])
            gate = R.matmul(z, gt)
            u = R.call_tir(dequantize, (u_qweight, u_scales, u_zeros), out_ty=R.Tensor((24, 32), "float32"))
            ut = R.permute_dims(u, [1, 0])
            up = R.matmul(z, ut)
            a = R.add(gate, x)
            y = R.multiply(a, up)
            R.output(y)
        return y

    plan = {**quantized("g", "gate"), **quantized("u", "up")}
    found = CombineParallelLinears()(functions.module(before, plan))
    assert_in_step(found)
    sources = list(plan_of(found).values())
    assert all(isinstance(s, QuantizedSource) and s.modules == ("gate", "up") for s in sources)
    assert not any(isinstance(s, DenseSource) for s in sources)
    assert_same_functions(CombineParallelLinears()(found), found)
