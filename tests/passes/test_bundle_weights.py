from __future__ import annotations

from typing import TypeVar

from tvm.script import relax as R

from awq_tvm.passes.bundle_weights import BundleWeights

from .modules import Functions, assert_same_functions, dense

n = TypeVar("n")
functions = Functions()
PLAN = {"a": dense("a"), "b": dense("b")}


@R.function
def before(x: R.Tensor((n, 24), "float32"), a: R.Tensor((24,), "float32"), b: R.Tensor((24,), "float32")):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        scaled = R.multiply(x, a)
        y = R.add(scaled, b)
        R.output(y)
    return y


@R.function
def expected(
    x: R.Tensor((n, 24), "float32"),
    weights: R.Tuple(R.Tensor((24,), "float32"), R.Tensor((24,), "float32")),
):
    R.func_attr({"num_input": 1})
    with R.dataflow():
        a = weights[0]
        scaled = R.multiply(x, a)
        b = weights[1]
        y = R.add(scaled, b)
        R.output(y)
    return y


@R.function
def without_parameters():
    R.func_attr({"global_symbol": "create_kv_cache"})
    with R.dataflow():
        size = R.shape([4])
        R.output(size)
    return size


def test_makes_one_tuple_of_the_weights() -> None:
    found = BundleWeights()(functions.module(before, PLAN))
    assert_same_functions(found, functions.module(expected, PLAN))


def test_leaves_functions_without_parameters() -> None:
    mod = functions.module(before, PLAN)
    mod["create_kv_cache"] = without_parameters
    found, wanted = BundleWeights()(mod), functions.module(expected, PLAN)
    wanted["create_kv_cache"] = without_parameters
    assert_same_functions(found, wanted)
