from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tvm.script import relax as R

from awq_tvm.passes.repack_dense_weights import RepackDenseWeights
from awq_tvm.schedules.parameter_plan import DenseSource
from awq_tvm.targets import resolve

from .modules import X86, Functions, assert_same, dense, plan_of

n = TypeVar("n")
m = TypeVar("m")
functions = Functions()
head = functions.dense_matmul("float16", shape=(40, 32))
packed = Functions()
# The pass adds its functions under the old stems; TVM numbers the second of a name.
packed_head = packed.dense_packed("dense_matmul1", (40, 32), "float16")
packed_rows = packed.dense_packed("dense_take", (40, 32), "float16", "float16")
PLAN = {"w": dense("model.embed_tokens.weight", dtype="float16")}
PACKED_PLAN = {"w": replace(PLAN["w"], layout="dense16")}


def test_a_table_that_is_looked_up_and_multiplied_by_is_stored_once() -> None:
    @R.function
    def before(
        ids: R.Tensor((n,), "int32"), x: R.Tensor((m, 32), "float32"), w: R.Tensor((40, 32), "float16")
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            rows = R.take(w, ids, axis=0)
            wide = R.astype(rows, "float32")
            y = R.call_tir(head, (x, w), out_ty=R.Tensor((m, 40), "float32"))
            both = (wide, y)
            R.output(both)
        return both

    @R.function
    def expected(
        ids: R.Tensor((n,), "int32"), x: R.Tensor((m, 32), "float32"), w: R.Tensor((3, 32, 16), "float16")
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            rows = R.call_tir(packed_rows, (w, ids), out_ty=R.Tensor((n, 32), "float16"))
            wide = R.astype(rows, "float32")
            y = R.call_tir(packed_head, (x, w), out_ty=R.Tensor((m, 40), "float32"))
            both = (wide, y)
            R.output(both)
        return both

    found = RepackDenseWeights(X86)(functions.module(before, PLAN))
    assert_same(found, packed.module(expected, PACKED_PLAN))


def test_weights_of_two_linears_keep_their_own_names() -> None:
    @R.function
    def before(
        x: R.Tensor((n, 32), "float32"), v: R.Tensor((40, 32), "float16"), w: R.Tensor((40, 32), "float16")
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.call_tir(head, (x, v), out_ty=R.Tensor((n, 40), "float32"))
            b = R.call_tir(head, (x, w), out_ty=R.Tensor((n, 40), "float32"))
            y = R.add(a, b)
            R.output(y)
        return y

    plan = {"v": dense("gate.weight", dtype="float16"), "w": dense("up.weight", dtype="float16")}
    found = plan_of(RepackDenseWeights(X86)(functions.module(before, plan)))
    assert list(found.values()) == [
        DenseSource(("gate.weight",), "float16", "dense16"),
        DenseSource(("up.weight",), "float16", "dense16"),
    ]


def test_leaves_a_weight_that_something_else_reads() -> None:
    @R.function
    def before(
        ids: R.Tensor((n,), "int32"), x: R.Tensor((m, 32), "float32"), w: R.Tensor((40, 32), "float16")
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            columns = R.take(w, ids, axis=1)
            y = R.call_tir(head, (x, w), out_ty=R.Tensor((m, 40), "float32"))
            both = (columns, y)
            R.output(both)
        return both

    mod = functions.module(before, PLAN)
    assert_same(RepackDenseWeights(X86)(mod), mod)


def test_leaves_a_weight_that_no_rule_serves() -> None:
    single = functions.dense_matmul("float32", name="single", shape=(40, 32))

    @R.function
    def before(x: R.Tensor((n, 32), "float32"), w: R.Tensor((40, 32), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(single, (x, w), out_ty=R.Tensor((n, 40), "float32"))
            R.output(y)
        return y

    mod = functions.module(before, {"w": dense("w.weight")})
    assert_same(RepackDenseWeights(resolve("cuda"))(mod), mod)
