"""The registry, asked about real targets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from awq_tvm.schedules.rule import Chosen, Unserved, rules_for, select, select_dense
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target, all_targets, resolve

SPEC = MatmulSpec(64, 48, 4, 32, "float32")


@pytest.mark.parametrize("target", [t for t in all_targets() if t.kind == "cpu"], ids=lambda t: t.name)
def test_every_cpu_has_a_kernel_for_float_activations(target: Target) -> None:
    chosen = select(SPEC, target)
    assert isinstance(chosen, Chosen)
    assert chosen.rule in rules_for(target)
    assert chosen.rule.layout(SPEC, target).arrays(SPEC)
    dense = select_dense(DenseSpec(64, 48, "float16", "float32"), target)
    assert dense is not None
    assert dense.rule.layout(DenseSpec(64, 48, "float16", "float32"), target).name == "dense16"


def test_int8_activations_take_another_rule() -> None:
    target = resolve("x86-64-v4-vnni")
    chosen, other = select(SPEC, target), select(replace(SPEC, activations="int8"), target)
    assert isinstance(chosen, Chosen)
    assert isinstance(other, Chosen)
    assert chosen.rule is not other.rule


def test_every_rule_says_why_it_does_not_serve() -> None:
    target = resolve("x86-64-v4-vnni")
    answer = select(replace(SPEC, group_size=4), target)
    assert isinstance(answer, Unserved)
    assert len(answer.reasons) == len(rules_for(target))
    names = [rule.name for rule in rules_for(target)]
    assert [reason.partition(":")[0] for reason in answer.reasons] == names


def test_a_target_without_a_dense_rule_leaves_it_to_tvm() -> None:
    assert select_dense(DenseSpec(64, 48, "float16", "float16"), resolve("cuda")) is None
