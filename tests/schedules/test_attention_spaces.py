"""What a tuner can choose for attention: every candidate is possible, and computes the same as the default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from awq_tvm.compile.tuning import timing
from awq_tvm.compile.tuning.attention_numbers import AttentionNumbers
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.attention.spaces import CONTEXT, NEW_TOKENS, REGISTERS, SPLIT_KEYS
from awq_tvm.schedules.config_fields import from_fields, to_fields
from awq_tvm.schedules.cpu.cost import instructions_a_vector
from awq_tvm.schedules.rule import Match, Part, attention_rule_for, dense_rules_for, rules_for
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target, all_targets, detect, resolve

CPUS = [resolve(name) for name in ("x86-64-v4-vnni", "x86-64-v3", "raspberry-pi-4", "graviton-3")]
KERNELS = ("decode", "prefill_paged", "prefill_ragged")
SMOLLM2 = AttentionShape(9, 3, 64, "float16")


def problem_of(kernel: Any, shape: AttentionShape = SMOLLM2, target: Target | None = None) -> Problem:
    found = Problem.of(AttentionSpec(kernel, shape), target or detect())
    assert found is not None
    return found


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_every_family_has_a_space(target: Target) -> None:
    served = 0
    for activations in ("int8", "float"):
        spec = MatmulSpec(576, 960, 4, 64, target.compute_dtype, activations=activations)
        for rule in rules_for(target):
            if isinstance(rule.applies(spec, target), Match):
                served += 1
                assert rule.space(spec, target), rule.name
    assert served
    dense = DenseSpec(576, 960, "float16", "float32")
    for dense_rule in dense_rules_for(target):
        assert dense_rule.space(dense, target), dense_rule.name
    attention = attention_rule_for(target)
    assert (attention is not None) == (target.kind == "cpu")
    if attention is not None:
        assert attention.space(AttentionSpec("decode", SMOLLM2), target)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", CPUS, ids=lambda target: target.name)
def test_every_candidate_is_held_by_the_target_and_keeps_its_cores_busy(target: Target, kernel: str) -> None:
    for shape in (SMOLLM2, AttentionShape(32, 8, 128, int8_pages=True), AttentionShape(5, 5, 24)):
        problem = problem_of(kernel, shape, target)
        (part,) = problem.parts
        assert (part.first_rows, part.last_rows) == (1, None)
        assert part.configs[0] == problem.default, "the default is tried first"
        assert len(set(part.configs)) == len(part.configs) > 3
        registers = REGISTERS[instructions_a_vector(target)]
        for config in part.configs[1:]:
            tiles = config.tiles
            assert tiles.rows * tiles.vectors + tiles.vectors < registers
            assert 4 * tiles.tile_rows * (2 * shape.head_dim + tiles.tile_keys) <= (target.l2_bytes or 2**18)
            assert from_fields(problem.default, to_fields(config, part.fields), part.fields) == config
            if kernel == "decode":
                assert tiles.tile_rows >= shape.group, "all heads of a key go together"
                assert config.split_keys in SPLIT_KEYS


def test_the_estimate_prefers_fewer_reads_of_keys_where_registers_allow() -> None:
    wide, narrow = (problem_of("prefill_paged", target=resolve(n)) for n in ("x86-64-v4-vnni", "x86-64-v3"))
    best = [problem.parts[0].configs[1].tiles for problem in (wide, narrow)]
    assert best[0].rows * best[0].vectors > best[1].rows * best[1].vectors


def test_keys_of_records_name_what_tiles_depend_on() -> None:
    keys = {}
    for kernel in KERNELS:
        for shape in (SMOLLM2, replace(SMOLLM2, heads=6, kv_heads=2), replace(SMOLLM2, int8_pages=True)):
            problem = problem_of(kernel, shape)
            assert Problem.from_json(problem.to_json()) == problem
            keys[kernel, shape] = problem.key(problem.parts[0])
    assert len(set(keys.values())) == len(keys)
    first = keys["decode", SMOLLM2]
    assert (first.op, first.rule, first.rows) == ("attention_decode", "cpu.attention", "1+")
    assert first.family == keys["decode", replace(SMOLLM2, heads=6, kv_heads=2)].family
    assert first.family != keys["decode", replace(SMOLLM2, int8_pages=True)].family
    assert (
        first.family
        != problem_of("decode", replace(SMOLLM2, heads=6)).key(problem_of("decode").parts[0]).family
    )


def candidates(part: Part) -> list[Any]:
    """The first ones, and those with the widest and the narrowest tiles."""
    by_width = sorted(part.configs, key=lambda config: (config.tiles.vectors, config.tiles.rows))
    return [part.configs[0], by_width[0], by_width[-1]]


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("decode", AttentionShape(6, 2, 24, int8_pages=True)),
        ("prefill_paged", AttentionShape(6, 2, 24)),
        ("prefill_ragged", AttentionShape(6, 2, 24, "float16")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_candidates_compute_the_reference(kernel: str, shape: AttentionShape) -> None:
    problem = problem_of(kernel, shape)
    (part,) = problem.parts
    numbers = AttentionNumbers(problem.spec, max(part.checked_rows))  # type: ignore[arg-type]
    operands = timing.Operands(numbers)
    for config in candidates(part):
        built = timing.compiled(problem, to_fields(config, part.fields))
        for rows in part.checked_rows:
            bound = numbers.bind(rows)
            built(*bound.arguments(operands.weights[0]))
            y = bound.y.numpy()
            assert numbers.error(y) <= numbers.bound, (config, rows)
            assert np.isnan(numbers.error(np.where(y == y.max(), np.nan, y)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_key_too_few_is_found(kernel: Any, dtype: str) -> None:
    spec = AttentionSpec(kernel, AttentionShape(4, 2, 16, dtype))
    numbers = AttentionNumbers(spec, 18)
    right = numbers._expected(18)
    assert numbers.error(right.astype(dtype)) <= numbers.bound
    numbers._v = numbers._v.copy()
    numbers._v[3 if kernel != "prefill_ragged" else 0] = 0
    assert not numbers.error(right.astype(dtype)) <= numbers.bound


def test_what_is_read_and_computed_when_it_is_timed() -> None:
    decode, _, ragged = (AttentionSpec(kernel, SMOLLM2) for kernel in KERNELS)  # type: ignore[arg-type]
    assert decode.bytes_read == 2 * CONTEXT * 3 * 64 * 2
    assert ragged.bytes_read == 0
    assert ragged.operations(NEW_TOKENS[0]) == 4 * (16 * 17 // 2) * 9 * 64
    assert decode.operations(1) == 4 * CONTEXT * 9 * 64
