from __future__ import annotations

from typing import TypeVar

import pytest
from tvm import relax
from tvm.script import relax as R

from awq_tvm.passes.legalize_vector_math import LegalizeVectorMath

from .modules import Functions, assert_same_functions

n = TypeVar("n")
OPERATORS = {
    "silu": R.nn.silu,
    "gelu": R.nn.gelu,
    "gelu_tanh": R.nn.gelu_tanh,
    "sigmoid": R.sigmoid,
    "tanh": R.tanh,
    "exp": R.exp,
    "erf": R.erf,
}
SCALAR_CALLS = ("T.exp(", "T.tanh(", "T.sigmoid(", "T.erf(")


def of_single(operator) -> relax.Function:
    @R.function
    def forward(x: R.Tensor((n, 24), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = operator(x)
            R.output(y)
        return y

    return forward


def of_half(operator) -> relax.Function:
    @R.function
    def forward(x: R.Tensor((n, 24), "float16")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = operator(x)
            R.output(y)
        return y

    return forward


@pytest.mark.parametrize("name", OPERATORS)
def test_lowers_float32_to_arithmetic(name: str) -> None:
    found = LegalizeVectorMath()(Functions().module(of_single(OPERATORS[name]), {}))
    script = found[name].script()
    assert not any(call in script for call in SCALAR_CALLS), script
    assert "T.Let" in script or "T.bind" in script or "T.reinterpret" in script
    assert f"R.{name}" not in found["forward"].script()


@pytest.mark.parametrize("name", OPERATORS)
def test_leaves_other_dtypes_to_tvm(name: str) -> None:
    mod = Functions().module(of_half(OPERATORS[name]), {})
    assert_same_functions(LegalizeVectorMath()(mod), relax.transform.LegalizeOps()(mod))


def test_leaves_other_operators_to_tvm() -> None:
    mod = Functions().module(of_single(R.sqrt), {})
    assert_same_functions(LegalizeVectorMath()(mod), relax.transform.LegalizeOps()(mod))
