from __future__ import annotations

import dataclasses

import pytest

from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.gpu.config import GpuMatmulConfig
from awq_tvm.schedules.gpu.weights import CodeReader
from awq_tvm.schedules.rule import NotApplicable, rules_for
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import Built, Emulated, build_for, check, needs_compiler

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


def built(case: MatmulSpec, name: str) -> Built:
    return build_for(rules_for(resolve(name))[-1], case, resolve(name))


@needs_compiler
@pytest.mark.parametrize(
    ("name", "case"), [("cuda", case) for case in CASES] + [("metal", case) for case in ON_METAL]
)
def test_kernels_compute_the_spec(name: str, case: str, tmp_path) -> None:
    matmul = built(CASES[case], name)
    kernels = Emulated(matmul.source, name, tmp_path)
    for m in TOKENS:
        check(kernels, matmul, CASES[case], m)


@needs_compiler
def test_without_a_barrier_the_emulator_objects(tmp_path) -> None:
    case = CASES["2 bits, float32"]
    matmul = built(case, "cuda")
    # The barrier at the end of the loop: the next tile is written while others still read this one.
    kernels = Emulated("".join(matmul.source.rsplit("__syncthreads();", 1)), "cuda", tmp_path)
    with pytest.raises(BundleError, match="went wrong") as error:
        check(kernels, matmul, case, 65)
    assert "missing barrier" in error.value.why


def test_host_part_picks_the_kernel_by_m() -> None:
    matmul = built(spec(64, 100, 4, 32), "cuda")
    (one,), (few,), (many,) = (matmul.launches(m) for m in (1, 16, 17))
    assert (one.kernel, one.grid, one.block) == ("mm_kernel", (25, 1, 1), (32, 4, 1))
    assert (few.kernel, few.grid, few.block) == ("mm_kernel_1", (25, 4, 1), (32, 4, 1))
    assert (many.kernel, many.grid, many.block) == ("mm_kernel_2", (2, 1, 1), (256, 1, 1))


def test_weights_are_read_16_bytes_at_a_time() -> None:
    cuda, metal = (built(spec(128, 16, 4, 32), name).source for name in ("cuda", "metal"))
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
