from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tvm

from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.gpu.config import GpuMatmulConfig
from awq_tvm.schedules.gpu.weights import CodeReader
from awq_tvm.schedules.layout import RowLayout
from awq_tvm.schedules.rule import Match, NotApplicable, rules_for
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import COMPILER, Emulated, launch_for

needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="kernels run on the CPU through g++, not installed"
)

TOKENS = (1, 2, 7, 16, 17, 65)


def spec(K: int, N: int, bits: int, group_size: int, **more: object) -> MatmulSpec:
    return MatmulSpec(K, N, bits, group_size, **{"dtype": "float16", **more})


# K of one group, K and N ragged against every tile, a group of the whole channel, runs shorter than a word.
EVERY_EPILOGUE = {"has_bias": True, "has_residual": True}
CASES = {
    "4 bits": spec(192, 100, 4, 64, activation_function="silu", **EVERY_EPILOGUE),
    "one group": spec(128, 65, 4, 128, has_bias=True, activation_function="gelu"),
    "8 bits": spec(96, 40, 8, 32, activation_function="gelu_tanh"),
    "3 bits, channel": spec(100, 9, 3, 100, has_residual=True),
    "2 bits, float32": spec(64, 33, 2, 32, dtype="float32", activation_function="relu"),
    "8 bits, odd K": spec(75, 5, 8, 75),
    "one nibble a run": spec(30, 7, 4, 15),
}
ON_METAL = ("4 bits", "8 bits", "3 bits, channel", "one nibble a run")


def built(case: MatmulSpec, name: str) -> tuple[tvm.tirx.PrimFunc, str]:
    """The rule's PrimFunc and the source of its kernels."""
    target = resolve(name)
    rule = rules_for(target)[-1]
    match = rule.applies(case, target)
    assert isinstance(match, Match)
    func = rule.build(case, target, match.config).with_attr("global_symbol", "mm")
    with tvm.target.Target(target.tvm_target_with_host) as built_for:
        library = tvm.tirx.build(tvm.IRModule({"mm": func}), target=built_for)
    return func, library.imports[0].inspect_source(name)


def random_arrays(case: MatmulSpec, m: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(m)
    N, K, G = case.out_features, case.in_features, case.groups
    q = rng.integers(0, 2**case.bits, (N, K), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.03, (N, G)).astype(np.float16)
    zeros = rng.integers(0, 2**case.bits, (N, G), dtype=np.uint8)
    arrays = dict(zip(("qweight", "scales", "zeros"), RowLayout().pack(case, q, scales, zeros), strict=True))
    arrays["q"] = q
    arrays["x"] = rng.standard_normal((m, K)).astype(case.dtype)
    arrays["bias"] = rng.standard_normal(N).astype(case.dtype)
    arrays["residual"] = rng.standard_normal((m, N)).astype(case.dtype)
    # A row before and after that no kernel may touch.
    arrays["guarded"] = np.full((m + 2, N), np.nan, case.dtype)
    arrays["y"] = arrays["guarded"][1:-1]
    return arrays


def reference(case: MatmulSpec, a: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """y in float64, and how far a kernel may be off.

    The bound: one rounding of the result to the output's dtype, and float32 sums of K products; no
    elementwise function here is steeper than 1.13.
    """
    W = (a["q"].astype(float) - np.repeat(a["zeros"], case.group_size, 1)) * np.repeat(
        a["scales"].astype(float), case.group_size, 1
    )
    x = a["x"].astype(float)
    bias = a["bias"].astype(float) if case.has_bias else 0.0
    v = x @ W.T + bias
    erf = np.vectorize(math.erf)
    f = {
        None: v,
        "relu": np.maximum(v, 0),
        "silu": v / (1 + np.exp(-v)),
        "gelu": 0.5 * v * (1 + erf(v * math.sqrt(0.5))),
        "gelu_tanh": 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    }[case.activation_function]
    y = f + (a["residual"].astype(float) if case.has_residual else 0.0)
    magnitude = np.abs(x) @ np.abs(W).T + np.abs(bias) + np.abs(y)
    rounding = 2.0**-11 if case.dtype == "float16" else 2.0**-24
    return y, rounding * np.abs(y) + 4 * case.in_features**0.5 * 2.0**-24 * magnitude + 1e-6


def check(kernels: Emulated, func: object, case: MatmulSpec, m: int) -> None:
    arrays = random_arrays(case, m)
    kernels.run(func, arrays, m)
    expected, bound = reference(case, arrays)
    assert (np.abs(arrays["y"] - expected) <= bound).all(), np.abs(arrays["y"] - expected).max()
    assert np.isnan(arrays["guarded"][[0, -1]]).all()


@needs_compiler
@pytest.mark.parametrize(
    ("name", "case"), [("cuda", case) for case in CASES] + [("metal", case) for case in ON_METAL]
)
def test_kernels_compute_the_spec(name: str, case: str, tmp_path) -> None:
    func, source = built(CASES[case], name)
    kernels = Emulated(source, name, tmp_path)
    for m in TOKENS:
        check(kernels, func, CASES[case], m)


@needs_compiler
def test_without_barriers_the_emulator_objects(tmp_path) -> None:
    case = CASES["2 bits, float32"]
    func, source = built(case, "cuda")
    kernels = Emulated(source.replace("__syncthreads();", ""), "cuda", tmp_path)
    with pytest.raises(BundleError, match="went wrong") as error:
        check(kernels, func, case, 65)
    assert "missing barrier" in error.value.why


def test_host_part_picks_the_kernel_by_m() -> None:
    target = resolve("cuda")
    case = spec(64, 100, 4, 32)
    rule = rules_for(target)[-1]
    func = rule.build(case, target, GpuMatmulConfig())
    one, few, many = (launch_for(func, "m", m) for m in (1, 16, 17))
    assert (one.index, one.grid, one.block) == (0, (25, 1, 1), (32, 4, 1))
    assert (few.index, few.grid, few.block) == (1, (25, 4, 1), (32, 4, 1))
    assert (many.index, many.grid, many.block) == (2, (2, 1, 1), (256, 1, 1))


def test_weights_are_read_16_bytes_at_a_time() -> None:
    _, cuda = built(spec(128, 16, 4, 32), "cuda")
    _, metal = built(spec(128, 16, 4, 32), "metal")
    assert "*(uint4*)(((uint*)qweight_ptr)" in cuda
    assert "*(device uint4*)(((device uint*)qweight_ptr)" in metal
    assert "simd_shuffle_down" in metal


@pytest.mark.parametrize(
    ("bits", "group_size", "limit", "codes", "words"),
    [(4, 128, 32, 32, 4), (8, 128, 32, 16, 4), (3, 100, 32, 4, 0), (4, 15, 32, 1, 0), (4, 64, 8, 8, 1)],
)
def test_runs_of_codes_stay_inside_a_group(bits, group_size, limit, codes, words) -> None:
    reader = CodeReader.widest(spec(group_size * 2, 4, bits, group_size), limit)
    assert (reader.codes, reader.words) == (codes, words)


@pytest.mark.parametrize("name", ["cuda", "metal"])
def test_int8_activations_are_left_to_other_rules(name) -> None:
    rule = rules_for(resolve(name))[-1]
    answer = rule.applies(spec(64, 64, 4, 32, activations="int8"), resolve(name))
    assert isinstance(answer, NotApplicable)
    assert "int8" in answer.reason


def test_a_gpu_without_room_for_the_tiles_is_left_to_other_rules() -> None:
    target = dataclasses.replace(resolve("metal"), shared_memory_bytes=8192)
    rule = rules_for(target)[-1]
    assert "16384" in rule.applies(spec(64, 64, 4, 32), target).reason


def test_other_warp_sizes_are_left_to_other_rules() -> None:
    metal = resolve("metal")
    target = dataclasses.replace(metal, warp_size=64, tvm_target={**metal.tvm_target, "thread_warp_size": 64})
    assert "64 threads" in rules_for(target)[-1].applies(spec(64, 64, 4, 32), target).reason


@pytest.mark.parametrize(
    "sizes",
    [
        {"rows_per_block": 64},
        {"rows_per_block": 0},
        {"tokens_per_block": 0},
        {"few_tokens": 0},
        {"tile_m": 96},
        {"tile_n": 0},
        {"tile_k": 16},
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        GpuMatmulConfig(**sizes)
