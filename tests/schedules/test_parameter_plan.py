from __future__ import annotations

import pytest

from awq_tvm.schedules.parameter_plan import DenseSource, ParameterPlan, QuantizedSource

PLAN = ParameterPlan(
    {
        "z": QuantizedSource(("q", "k"), "{}", "row", 2),
        "a": DenseSource(("a.weight", "b.weight"), "float16"),
        "b": DenseSource(("c.weight",), "float16", "dense16"),
    }
)


def test_json_keeps_everything_in_order() -> None:
    back = ParameterPlan.from_json(PLAN.to_json())
    assert back == PLAN
    assert list(back.sources) == ["z", "a", "b"]


def test_each_kind_is_told_from_the_other() -> None:
    assert (PLAN.is_quantized("z"), PLAN.is_dense("z")) == (True, False)
    assert (PLAN.is_quantized("a"), PLAN.is_dense("a")) == (False, True)
    assert (PLAN.is_quantized("input_ids"), PLAN.is_dense("input_ids")) == (False, False)
    assert PLAN.quantized("z").array == 2
    assert PLAN.dense("b").layout == "dense16"


@pytest.mark.parametrize("name", ["a", "input_ids"])
def test_a_quantized_source_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        PLAN.quantized(name)


@pytest.mark.parametrize("name", ["z", "input_ids"])
def test_a_dense_source_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        PLAN.dense(name)
