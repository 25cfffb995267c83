"""The fused dequantize-matmul kernels for CPUs against float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from awq_tvm import ir_attrs
from awq_tvm.schedules.cpu.dot import ONE_INSTRUCTION
from awq_tvm.schedules.rule import Match, NotApplicable, rules_for, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve
from tests.support import cpu_kernels

ROWS = (1, 2, 5, 7, 8, 13, 16, 17, 33, 130)

# (N, K, group size, bits): ragged N, one group, per channel, every width, more than one panel of k.
PROBLEMS = (
    (16, 32, 32, 4),
    (24, 64, 64, 4),
    (40, 128, 128, 4),
    (100, 576, 64, 4),
    (96, 576, 576, 4),
    (48, 384, 32, 3),
    (33, 128, 64, 2),
    (50, 256, 128, 3),
    (40, 48, 24, 3),
    (40, 96, 32, 8),
)
# From target to target other instructions decode and multiply the codes of a width, and sum a whole channel; how N,
# K and rows are cut into tiles is the same everywhere.
EVERY_WIDTH = ((100, 576, 64, 4), (96, 576, 576, 4), (48, 384, 32, 3), (33, 128, 64, 2), (40, 96, 32, 8))

# |y - reference| / sum(|x| |W|). Float32 sums of K <= 576 products are off by at most K * 2**-24 = 3.4e-5;
# roundings that do not all point the same way leave a small part of that.
FLOAT_BOUND = 2e-6
# Sums that are exact within a group: what is left is one float32 sum over the groups, and for float
# activations 2**-24 of the largest x of each group, which is up to 20 times the mean here.
EXACT_BOUND = 6e-7


def bound_of(kernel: cpu_kernels.Kernel) -> float:
    return FLOAT_BOUND if kernel.rule.name.endswith(".float") else EXACT_BOUND


@pytest.fixture(params=cpu_kernels.TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    found = cpu_kernels.target_or_none(request.param)
    if found is None:
        pytest.skip(f"this machine cannot run {request.param} code, or has no more than that")
    return found


def on_targets(name: str, cases: Sequence[Any], elsewhere: Sequence[Any]) -> pytest.MarkDecorator:
    """Run a test with each case on this machine as it is, and with some on it as a lesser one."""
    first, *others = cpu_kernels.TARGETS
    pairs = [(first, case) for case in cases]
    pairs += [(other, case) for other in others for case in elsewhere]
    return pytest.mark.parametrize(("target", name), pairs, indirect=["target"])


def kernel_here(spec: MatmulSpec) -> cpu_kernels.Kernel:
    """The kernel for this machine; the test is skipped where it has none."""
    if select(spec, resolve("cpu"))[0] is None:
        pytest.skip("this machine has no such kernel")
    return cpu_kernels.Kernel(spec, resolve("cpu"))


def random_rows(rows: int, k: int) -> np.ndarray:
    # Groups of very different size, as activations have them.
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    return x * np.exp(rng.standard_normal((1, k))).astype(np.float32)


@on_targets("problem", PROBLEMS, EVERY_WIDTH)
def test_float_activations_match_float64(problem: tuple[int, int, int, int], target: Target) -> None:
    kernel = cpu_kernels.Kernel(cpu_kernels.spec_of(*problem), target)
    for rows in ROWS:
        assert kernel.relative_error(random_rows(rows, problem[1])) < bound_of(kernel), rows


@on_targets("problem", PROBLEMS, EVERY_WIDTH)
def test_int8_activations_match_their_quantized_reference(
    problem: tuple[int, int, int, int], target: Target
) -> None:
    spec = cpu_kernels.spec_of(*problem, activations="int8")
    kernel = cpu_kernels.Kernel(spec, target)
    for rows in ROWS:
        assert kernel.relative_error(random_rows(rows, problem[1])) < EXACT_BOUND, rows


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ones", ["codes", "zero points"])
def test_no_sum_of_the_largest_products_is_cut_off(bits: int, ones: str, target: Target) -> None:
    """The largest and the smallest codes meet activations that all quantize to 127 or to -127, in turn by rows."""
    spec = cpu_kernels.spec_of(32, 128, 64, bits, activations="int8")
    largest = (1 << bits) - 1
    code, zero = (largest, 0) if ones == "codes" else (0, largest)
    q, zeros = np.full((32, 128), code, np.uint8), np.full((32, 2), zero, np.uint8)
    kernel = cpu_kernels.Kernel(spec, target, (q, np.ones((32, 2), np.float16), zeros))
    x = np.ones((9, 128), np.float32) * np.where(np.arange(9) % 2, -1, 1).astype(np.float32)[:, None]
    expected = x @ np.full((128, 32), code - zero, np.float32)
    np.testing.assert_allclose(kernel.run(x), expected, rtol=1e-6)


FUNCTIONS = {None: lambda v: v, **cpu_kernels.GATES}


EPILOGUES = (
    ("silu", False, False),
    ("silu", True, True),
    ("gelu", True, False),
    ("gelu_tanh", True, True),
    ("relu", False, True),
    (None, True, True),
)


# The functions are the same polynomials everywhere.
@on_targets("epilogue", EPILOGUES, EPILOGUES[1:2])
def test_epilogues(epilogue: tuple[str | None, bool, bool], target: Target) -> None:
    function, has_bias, has_residual = epilogue
    spec = cpu_kernels.spec_of(
        40, 64, 32, has_bias=has_bias, has_residual=has_residual, activation_function=function
    )
    kernel = cpu_kernels.Kernel(spec, target)
    for rows in (1, 3, 18):
        x = random_rows(rows, 64)
        residual = np.random.default_rng(3).standard_normal((rows, 40)).astype(np.float32)
        got = kernel.run(x, residual if has_residual else None)
        inner = x @ kernel.weight.T + (kernel.bias if has_bias else 0)
        wanted = FUNCTIONS[function](inner) + (residual if has_residual else 0)
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=5e-6 * np.abs(inner).max())


PROLOGUES: tuple[tuple[tuple[int, int, int, int], dict[str, Any]], ...] = (
    ((100, 576, 64, 4), {"rms_norm_eps": 1e-5}),
    ((40, 48, 24, 3), {"rms_norm_eps": 0.5, "has_bias": True}),
    ((100, 576, 64, 4), {"gate": "relu"}),
    ((40, 48, 24, 3), {"gate": "silu"}),
    ((40, 96, 32, 8), {"gate": "silu", "has_bias": True}),
    ((24, 32, 32, 4), {"gate": "gelu"}),
    ((24, 32, 32, 4), {"gate": "gelu_tanh"}),
)
INEXACT = ("silu", "gelu", "gelu_tanh")
# Of the largest value of a group, whose exponent all of it shares: half a unit in the last of 24 places for the
# digits; what else is rounded is smaller by the mean. The functions are polynomials with errors of their own.
PREPARED_BOUND, FUNCTION_BOUND = 2.0**-24, 5e-7
# A value on the boundary between two of its 8 bits may then fall on the other side. Each that does has an error of
# 1 / 127 of its group's largest value, which is ten times the mean here, and K are 32 to 96.
FEW_CODES = 6e-3


@pytest.mark.parametrize("activations", ["float", "int8"])
@on_targets("problem_and_prologue", PROLOGUES, (PROLOGUES[0], PROLOGUES[1], PROLOGUES[4]))
def test_prologues(
    problem_and_prologue: tuple[tuple[int, int, int, int], dict[str, Any]], activations: str, target: Target
) -> None:
    """x is normalised or gated by the kernel itself, for every M; a bias comes after as ever."""
    problem, prologue = problem_and_prologue
    spec = cpu_kernels.spec_of(*problem, activations=activations, **prologue)
    if activations == "float" and not target.features & ONE_INSTRUCTION:
        assert select(spec, target)[0] is None
        return
    kernel = cpu_kernels.Kernel(spec, target)
    exact, inexact = (PREPARED_BOUND, FUNCTION_BOUND) if activations == "float" else (EXACT_BOUND, FEW_CODES)
    bound = inexact if spec.gate in INEXACT else exact
    for rows in ROWS:
        x = random_rows(rows, spec.x_features)
        assert kernel.relative_error(x, by_largest=activations == "float") < bound, rows


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_rows_of_zeros_are_normalised_to_zeros(activations: str) -> None:
    kernel = kernel_here(cpu_kernels.spec_of(24, 64, 32, activations=activations, rms_norm_eps=1e-6))
    for rows in (1, 4, 20):
        x = random_rows(rows, 64)
        x[0] = 0
        y = kernel.run(x)
        assert not y[0].any()
        assert rows == 1 or y[1:].all()


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("prologue", [{"rms_norm_eps": 1e-6}, {"gate": "silu"}])
def test_nan_and_infinity_do_not_vanish_in_a_prologue(prologue: dict[str, Any], activations: str) -> None:
    kernel = kernel_here(cpu_kernels.spec_of(16, 128, 64, activations=activations, **prologue))
    for rows, bad in itertools.product((1, 5, 20), (np.nan, np.inf)):
        x = random_rows(rows, kernel.spec.x_features)
        x[rows - 1, 70] = bad
        y = kernel.run(x)
        assert not np.isfinite(y[rows - 1]).any()
        assert np.isfinite(y[: rows - 1]).all()


def test_what_takes_x_as_it_is_says_so() -> None:
    spec = cpu_kernels.spec_of(32, 64, 32, rms_norm_eps=1e-6)
    for name in ("raspberry-pi-4", "x86-64-v3", "cuda"):
        rule, reasons = select(spec, resolve(name))
        assert rule is None
        assert any("take x as it is" in reason for reason in reasons)


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_nan_and_infinity_do_not_vanish(activations: str) -> None:
    kernel = kernel_here(cpu_kernels.spec_of(16, 128, 64, activations=activations))
    for rows, bad in itertools.product((1, 5, 20), (np.nan, np.inf)):
        x = random_rows(rows, 128)
        x[rows - 1, 70] = bad
        y = kernel.run(x)
        assert not np.isfinite(y[rows - 1]).any()
        assert np.isfinite(y[: rows - 1]).all()


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_zero_rows_give_exact_zeros(activations: str) -> None:
    kernel = kernel_here(cpu_kernels.spec_of(24, 64, 32, activations=activations))
    for rows in (1, 4, 20):
        x = random_rows(rows, 64)
        x[0] = 0
        y = kernel.run(x)
        assert not y[0].any()
        assert rows == 1 or y[1:].all()


def test_an_outlier_costs_its_group_no_more_than_its_own_last_place() -> None:
    kernel = cpu_kernels.Kernel(cpu_kernels.spec_of(32, 256, 128), resolve("cpu"))
    x = random_rows(1, 256)
    x[0, 5] = 1000.0
    error = np.abs(kernel.run(x) - x @ kernel.weight.T)
    largest = np.repeat(np.abs(x.reshape(1, 2, 128)).max(-1), 128, axis=1)
    assert (error / (largest @ np.abs(kernel.weight).T)).max() < 2.0**-24


@pytest.mark.parametrize("family_target", ["x86-64-v3", "x86-64-v4-vnni", "arm"])
def test_the_kernel_says_what_it_is(family_target: str) -> None:
    target = resolve(family_target)
    spec = cpu_kernels.spec_of(32, 64, 32, has_bias=True)
    rule, match = select(spec, target)
    func = rule.build(spec, target, match.config)
    assert func.attrs[ir_attrs.OP] == ir_attrs.OP_DEQUANTIZE_MATMUL
    assert MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC]) == spec
    assert func.attrs[ir_attrs.SCHEDULE] == rule.name
    assert func.attrs[ir_attrs.LAYOUT] == rule.layout(spec, target).name
    assert func.attrs[ir_attrs.IS_SCHEDULED]
    assert "global_symbol" not in func.attrs
    assert len(func.params) == 1 + 3 + 1 + 1


def test_what_no_family_serves_is_refused_with_reasons() -> None:
    target = resolve("x86-64-v4-vnni")
    for spec, word in (
        (MatmulSpec(64, 32, 4, 32, "float16"), "float16"),
        (MatmulSpec(60, 32, 4, 20, "float32"), "multiple of 8"),
    ):
        rule, reasons = select(spec, target)
        assert rule is None
        assert any(word in reason for reason in reasons)


def test_wide_groups_are_left_to_float32_sums() -> None:
    target = resolve("x86-64-v4-vnni")
    assert select(cpu_kernels.spec_of(32, 64, 64), target)[0].name == "x86.float_digits"
    assert select(cpu_kernels.spec_of(32, 576, 576), target)[0].name == "x86.float"


def test_every_rule_answers_with_a_match_or_a_reason() -> None:
    for name in ("x86-64-v3", "x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni", "arm"):
        target = resolve(name)
        for activations in ("float", "int8"):
            spec = cpu_kernels.spec_of(32, 64, 32, activations=activations)
            for rule in rules_for(target):
                answer = rule.applies(spec, target)
                assert isinstance(answer, Match) or (isinstance(answer, NotApplicable) and answer.reason)
