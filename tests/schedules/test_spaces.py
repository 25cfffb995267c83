"""What a tuner can choose: every candidate is possible, differs where it may, and computes the same."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.config_fields import from_fields, to_fields
from awq_tvm.schedules.cpu.dense import build_dense_matmul
from awq_tvm.schedules.cpu.dot_matmul import Tile
from awq_tvm.schedules.rule import Match, Part, rules_for, select_dense
from awq_tvm.schedules.spec import DenseSpec
from awq_tvm.targets import all_targets, resolve
from tests.support.cpu_kernels import TARGETS, Kernel, spec_of, target_or_none

CPUS = [target for target in all_targets() if target.kind == "cpu"]


def spaces_of(target_name: str) -> list[tuple[str, Any, tuple[Part, ...]]]:
    """(rule, default configuration, parts) of every family that serves one of a few linears."""
    target = resolve(target_name)
    found: list[tuple[str, Any, tuple[Part, ...]]] = []
    for activations in ("int8", "float"):
        for shape in ((960, 576, 64), (40, 64, 32), (64, 1024, 1024)):
            spec = spec_of(*shape, activations=activations)
            for rule in rules_for(target):
                answer = rule.applies(spec, target)
                if isinstance(answer, Match):
                    found.append((rule.name, answer.config, rule.space(spec, target)))
    dense_spec = DenseSpec(576, 960, "float16", "float32")
    dense = select_dense(dense_spec, target)
    assert dense is not None
    found.append((dense.rule.name, dense.match.config, dense.rule.space(dense_spec, target)))
    return found


@pytest.mark.parametrize("name", [target.name for target in CPUS])
def test_every_candidate_is_possible_and_differs_where_it_may(name: str) -> None:
    for rule, default, parts in spaces_of(name):
        assert parts, rule
        assert parts[0].first_rows == 1
        for before, after in itertools.pairwise(parts):
            assert after.first_rows == (before.last_rows or 0) + 1
        assert parts[-1].last_rows is None
        for part in parts:
            assert part.configs[0] == default, "the default is tried first"
            assert len(part.configs) > 3, (rule, part.first_rows)
            assert len(set(part.configs)) == len(part.configs)
            assert part.timed_rows
            assert all(part.first_rows <= m <= (part.last_rows or m) for m in part.checked_rows)
            assert set(part.timed_rows) <= set(part.checked_rows)
            for config in part.configs:
                others = [f.name for f in fields(config) if f.name not in part.fields]
                assert to_fields(config, others) == to_fields(default, others)
                assert from_fields(default, to_fields(config, part.fields), part.fields) == config


def test_no_field_is_tuned_twice() -> None:
    for _, _, parts in spaces_of("x86-64-v4-vnni"):
        names = [name for part in parts for name in part.fields]
        assert len(set(names)) == len(names)


def test_a_machine_with_fewer_registers_has_fewer_candidates() -> None:
    def count(target: str) -> int:
        spec = spec_of(960, 576, 64, activations="int8")
        return sum(len(part.configs) for part in rules_for(resolve(target))[0].space(spec, resolve(target)))

    assert count("x86-64-v3-vnni") < count("x86-64-v4-vnni")


def test_no_more_blocks_than_the_linear_has() -> None:
    target = resolve("x86-64-v4-vnni")
    spec = spec_of(32, 64, 32, activations="int8")
    first, *_ = rules_for(target)[0].space(spec, target)
    assert {config.one_row.blocks for config in first.configs} == {1, 2}


def test_the_first_candidates_do_not_spill() -> None:
    """What is ranked first has room in the registers for its operands too; 12 rows x 2 blocks has none."""
    target = resolve("x86-64-v4-vnni")
    parts = rules_for(target)[0].space(spec_of(4096, 4096, 128, activations="int8"), target)
    first = [config.many_rows for config in parts[2].configs[1:11]]
    assert all(tile.rows * tile.blocks + 2 * tile.blocks + 1 <= 32 for tile in first)
    assert all(tile.rows >= 4 for tile in first), "tiles of few rows decode the codes too often"


SAMPLES = (0, 1, 5, -1)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_candidates_compute_what_the_default_does(name: str, activations: str) -> None:
    target = target_or_none(name)
    if target is None:
        pytest.skip(f"this machine is no {name}")
    spec = spec_of(56, 128, 32, activations=activations)
    rule = next(r for r in rules_for(target) if isinstance(r.applies(spec, target), Match))
    rng = np.random.default_rng(3)
    for sample in SAMPLES:
        # One build takes a candidate of each part: they are independent.
        parts = rule.space(spec, target)
        config = parts[0].configs[0]
        for part in parts:
            chosen = to_fields(part.configs[sample], part.fields)
            config = from_fields(config, chosen, part.fields)
        kernel = Kernel(spec, target, config=config)
        for rows in sorted({m for part in parts for m in part.checked_rows}):
            x = rng.standard_normal((rows, spec.in_features)).astype(np.float32)
            assert kernel.relative_error(x) < 1e-6, (config, rows)


def test_dense_candidates_compute_what_the_default_does() -> None:
    import tvm

    target = resolve("cpu")
    spec = DenseSpec(96, 56, "float16", "float32")
    chosen = select_dense(spec, target)
    assert chosen is not None
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((56, 96)).astype(np.float16)
    (packed,) = chosen.rule.layout(spec, target).pack(weight)
    for sample in SAMPLES:
        config = chosen.match.config
        parts = chosen.rule.space(spec, target)
        for part in parts:
            config = from_fields(config, to_fields(part.configs[sample], part.fields), part.fields)
        func = chosen.rule.build(spec, target, config)
        module = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
        kernel = tvm.compile(module, target=tvm.target.Target(target.tvm_target))["kernel"]
        for rows in (1, 2, 17):
            x = rng.standard_normal((rows, 96)).astype(np.float32)
            y = tvm.runtime.tensor(np.full((rows, 56), np.nan, np.float32))
            kernel(tvm.runtime.tensor(x), tvm.runtime.tensor(packed), y)
            np.testing.assert_allclose(y.numpy(), x @ weight.T.astype(np.float32), atol=2e-5)


@pytest.mark.parametrize(
    "named",
    [
        {"registers": 64},
        {"one_row": 3},
        {"one_row": {"rows": True}},
        {"one_row": {"height": 1}},
        {"one_row": {"rows": 1, "blocks": 40}},
        {"one_row": {"blocks": 2.0}},
    ],
)
def test_fields_that_do_not_fit_are_refused(named: dict[str, Any]) -> None:
    target = resolve("x86-64-v4-vnni")
    spec = spec_of(64, 64, 32, activations="int8")
    (rule,) = (r for r in rules_for(target) if r.name == "x86.int8")
    answer = rule.applies(spec, target)
    assert isinstance(answer, Match)
    good = from_fields(answer.config, {"one_row": {"blocks": 3, "ahead": 0}}, ("one_row",))
    assert good == replace(answer.config, one_row=replace(answer.config.one_row, blocks=3, ahead=0))
    assert good.one_row == Tile(1, 3, 2, 0)
    with pytest.raises(UnsupportedError):
        from_fields(answer.config, named, ("one_row",))


def test_the_dense_kernel_takes_its_configuration() -> None:
    target = resolve("x86-64-v4")
    spec = DenseSpec(64, 64, "float16", "float32")
    chosen = select_dense(spec, target)
    assert chosen is not None
    wide = replace(chosen.match.config, one_row_blocks=4)
    assert (
        chosen.rule.build(spec, target, wide).script()
        != build_dense_matmul(64, 64, "float16", "float32", False, chosen.match.config).script()
    )
