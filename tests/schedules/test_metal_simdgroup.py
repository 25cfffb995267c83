"""The kernels for Apple's SIMD groups in the emulator against float64, and what their source says of them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.metal.config import FewConfig, SimdgroupConfig, TileConfig, default_config
from awq_tvm.schedules.metal.simdgroup import SimdgroupRule
from awq_tvm.schedules.rule import Chosen, NotApplicable, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import all_targets, resolve
from tests.support.banks import most_in_a_bank, vectors_stored
from tests.support.gpu_kernels import Emulated, build_for, check, needs_compiler

RULE, TARGET = SimdgroupRule(), resolve("metal")
TOKENS = (1, 2, 7, 8, 9, 16, 17, 33, 70)
MOST_FEW = 8
"""Up to so many tokens weights are exact; above, they are rounded to float16."""

EVERYTHING = {"has_bias": True, "has_residual": True, "activation_function": "silu"}


def spec(K: int, N: int, bits: int, group_size: int, **more: object) -> MatmulSpec:
    return MatmulSpec(K, N, bits, group_size, **{"dtype": "float16", **more})


# K of half a tile's depth, of more chunks than lanes, and of one group; N ragged against quad and tile.
CASES = {
    "4 bits": spec(192, 70, 4, 64, **EVERYTHING),
    "short groups": spec(96, 35, 4, 32, has_residual=True),
    "long rows": spec(1152, 9, 4, 128, has_bias=True, activation_function="gelu"),
    "8 bits": spec(160, 66, 8, 32, **EVERYTHING),
    "3 bits, channel": spec(192, 6, 3, 192, has_bias=True),
    "2 bits, one chunk": spec(32, 64, 2, 32),
    "gated": spec(96, 70, 4, 32, output_gate="silu"),
}


FOUR = SimdgroupConfig((FewConfig(8, 4, 1),), (TileConfig(32, 32, 2, 2, depth=32),))
TWO = SimdgroupConfig((FewConfig(2, 2, 3), FewConfig(8, 4)), (TileConfig(64, 32, 4, 1),))
STAGED = SimdgroupConfig((FewConfig(8, 1),), (TileConfig(64, 128, 4, 2, depth=32),))
"""Its sums take more threadgroup memory than its tiles."""
TILE = SimdgroupConfig((), (TileConfig(32, 64, 2, 2),))

RUNS = {
    "4 bits": ("4 bits", None),
    "long rows, four outputs a SIMD group": ("long rows", FOUR),
    "8 bits, four outputs a SIMD group": ("8 bits", FOUR),
    "4 bits, many sums": ("4 bits", STAGED),
    "short groups, two outputs a SIMD group": ("short groups", TWO),
}
FAST = ("4 bits", "gated", "8 bits, four outputs a SIMD group")
RUNS |= {name: (name, None) for name in CASES}


@needs_compiler
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_kernels_compute_the_spec(name: str, tmp_path) -> None:
    case, config = CASES[RUNS[name][0]], RUNS[name][1]
    built = build_for(RULE, case, TARGET, config)
    kernels = Emulated(built.source, "metal", tmp_path)
    for m in TOKENS:
        check(kernels, built, case, m, rounded=m > MOST_FEW)


@needs_compiler
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_every_barrier_is_needed(which: int, tmp_path) -> None:
    """Without it the emulator objects, so with it there is no race it can see."""
    case = CASES["4 bits"]
    built = build_for(RULE, case, TARGET, TILE)
    source = built.source
    barriers = list(re.finditer(r"(threadgroup|simdgroup)_barrier\(mem_flags::mem_threadgroup\);", source))
    assert len(barriers) == 6  # tiles written, tiles read, and two for each of the two slices of sums
    at = barriers[which].span()
    kernels = Emulated(source[: at[0]] + source[at[1] :], "metal", tmp_path)
    with pytest.raises(BundleError) as error:
        check(kernels, built, case, 33, rounded=True)
    assert re.search("missing barrier|uninitialised", error.value.why)


def test_host_part_picks_the_kernel_by_m() -> None:
    built = build_for(RULE, spec(64, 1000, 4, 32), TARGET)
    found = [built.launches(m) for m in (1, 4, 8, 16, 32, 33)]
    kernels = ["mm_kernel", *(f"mm_kernel_{i}" for i in range(1, 6))]
    assert [launch.kernel for (launch,) in found] == kernels
    # 128 SIMD groups are wanted: four outputs each.
    assert {(launch.grid, launch.block) for (launch,) in found[:3]} == {((125, 1, 1), (64, 1, 1))}
    assert {(launch.grid, launch.block) for (launch,) in found[3:]} == {((16, 1, 1), (128, 1, 1))}
    assert built.launches(130)[0].grid == (16, 3, 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_source_says(bits: int) -> None:
    """Counts of what is written, not of what Apple's compiler makes of it: there is none here."""
    config = default_config(4096, TARGET.num_sms)
    source = build_for(RULE, spec(4096, 4096, bits, 128), TARGET).source
    kernels = source.split("// Function: ")[1:]
    assert len(kernels) == len(config.few) + len(config.tiles)
    vectors = 4 * bits // 4
    for one, kernel in zip((*config.few, *config.tiles), kernels, strict=True):
        # Codes come 16 bytes at a time, and only so.
        assert "qweight_ptr)[" not in kernel
        loads = kernel.count("*(device uint4*)(((device uint*)qweight_ptr)")
        assert "simd_shuffle" not in kernel
        if isinstance(one, FewConfig):
            assert loads == vectors
            assert kernel.count("= simd_sum(") == one.rows * one.tokens
            assert kernel.count("dot(") == 2 * 4 * one.rows * one.tokens
            assert kernel.count("scales_ptr +") == 1
            assert kernel.count("*(device half4*)(x_ptr") == kernel.count("(x_ptr") == 8 * one.tokens
            # A conversion of an integer: the zero points, once for each bias, and no code.
            assert kernel.count("(half4)*(device uchar4*)") == 2
            assert "threadgroup " not in kernel
        else:
            assert loads == bits // 4
            (threadgroup,) = re.findall(r"threadgroup uint4 tiles\[(\d+)\];", kernel)
            assert one.threadgroup_bytes == 16 * int(threadgroup)
            count = one.own_tokens * one.own_rows // 64
            assert f"simdgroup_float8x8 sums[{count}];" in kernel
            assert kernel.count("simdgroup_half8x8 ") == 2
            assert kernel.count("simdgroup_multiply_accumulate(") == count
            assert kernel.count("simdgroup_load(") == (one.own_tokens + one.own_rows) // 8


@pytest.mark.parametrize(
    "tile", [*default_config(4096, 8).tiles, *FOUR.tiles, *TWO.tiles, *STAGED.tiles], ids=str
)
def test_no_two_lanes_meet_in_a_bank(tile: TileConfig) -> None:
    """Of those that store 16 bytes of x, or of weights, at once."""
    built = build_for(RULE, spec(4096, 4096, 4, 128), TARGET, SimdgroupConfig((), (tile,)))
    stores = vectors_stored(built.source, "tiles", tile.threads)
    assert len(stores) == (tile.tokens + tile.rows) * tile.depth // 8 // tile.threads
    assert sorted(np.concatenate(stores)) == list(range((tile.tokens + tile.rows) * tile.depth // 8))
    assert [most_in_a_bank(16 * store, 16) for store in stores] == [1] * len(stores)


@pytest.mark.parametrize("name", [target.name for target in all_targets() if target.kind == "metal"])
def test_every_apple_gpu_has_room_and_enough_to_do(name: str) -> None:
    target = resolve(name)
    for out_features in (64, 576, 1024, 4096, 28672):
        match = RULE.applies(spec(4096, out_features, 4, 128), target)
        assert not isinstance(match, NotApplicable)
        assert match.config.threadgroup_bytes <= 32 * 1024
    rows = [default_config(n, target.num_sms).few[0].rows for n in (64, 400, 4096)]
    assert rows == [1, 2, 4]


@pytest.mark.parametrize(
    ("case", "target", "reason"),
    [
        (spec(64, 16, 4, 32, dtype="float32"), TARGET, "float32"),
        (spec(64, 16, 4, 32, activations="int8"), TARGET, "int8"),
        (spec(96, 16, 4, 48), TARGET, "no multiple of 32"),
        (spec(64, 16, 4, 32), dataclasses.replace(TARGET, shared_memory_bytes=16 * 1024 - 1), "16384 bytes"),
        (
            spec(64, 16, 4, 32),
            dataclasses.replace(
                TARGET, warp_size=64, tvm_target={**TARGET.tvm_target, "thread_warp_size": 64}
            ),
            "SIMD groups of 64",
        ),
    ],
)
def test_what_it_cannot_do_is_left_to_the_portable_kernels(case: MatmulSpec, target, reason: str) -> None:
    answer = RULE.applies(case, target)
    assert isinstance(answer, NotApplicable)
    assert reason in answer.reason


def test_the_portable_kernels_take_what_is_left() -> None:
    for group_size, rule in ((32, "metal_simdgroup_matmul"), (48, "metal_simd_matmul")):
        chosen = select(spec(96, 16, 4, group_size), TARGET)
        assert isinstance(chosen, Chosen)
        assert chosen.rule.name == rule


@pytest.mark.parametrize(
    "make",
    [
        lambda: FewConfig(1, 3),
        lambda: FewConfig(1, 4, 33),
        lambda: FewConfig(9, 4),
        lambda: FewConfig(0, 4),
        lambda: TileConfig(16, 64, 0, 4),
        lambda: TileConfig(64, 64, 8, 8),
        lambda: TileConfig(24, 64, 2, 2),
        lambda: TileConfig(32, 40, 2, 2),
        lambda: TileConfig(64, 128, 2, 2),
        lambda: TileConfig(16, 24, 1, 3),
        lambda: TileConfig(16, 64, 1, 4, depth=48),
        lambda: TileConfig(8, 64, 1, 4, depth=32),
        lambda: TileConfig(64, 64, 2, 2, depth=128),
        lambda: SimdgroupConfig((FewConfig(4),), ()),
        lambda: SimdgroupConfig((FewConfig(4), FewConfig(4)), (TileConfig(16, 64, 1, 4),)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        make()
