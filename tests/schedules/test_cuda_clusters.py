"""Parts of k that are a cluster: in the emulator against float64, and without each of their barriers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.errors import BundleError
from awq_tvm.schedules.cuda.config import FewConfig, TiledConfig
from awq_tvm.schedules.cuda.division import are_clusters, divide
from awq_tvm.schedules.cuda.hopper import HopperRule
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig, default_hopper_config
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import Built, Emulated, build_for, check, needs_compiler, random_arrays

RULE, TARGET = HopperRule(), resolve("nvidia-h100")
EVERYTHING = {"has_bias": True, "has_residual": True, "activation_function": "silu"}


def spec(K: int, N: int, bits: int, group_size: int, **more: object) -> MatmulSpec:
    return MatmulSpec(K, N, bits, group_size, **{"dtype": "float16", **more})


# Up to 16, 32 and 64 tokens by `mma`, two of them by warps that divide k as well, and up to 128 by `wgmma`, whose
# sums pass through shared memory in several turns, and for more the host works out how many are a cluster. On 64 SMs
# the parts are some five.
CONFIG = HopperConfig(
    (FewConfig(1, 1, 2),),
    (
        TiledConfig(2, 1, 1, 2, 3, 2, split_blocks=3),
        TiledConfig(4, 1, 1, 2, 2, split_blocks=3),
        TiledConfig(8, 1, 1, 2, 2, 2, split_blocks=4),
        WarpgroupConfig(128, 2, 1, 3, split_blocks=3),
    ),
    WarpgroupConfig(48, 1, 1, 4, split_blocks=3),
    sms=64,
    clusters=True,
)
CASES = {
    "4 bits": spec(1024, 136, 4, 64, **EVERYTHING),
    "odd outputs, bfloat16": spec(1024, 99, 4, 128, dtype="bfloat16", has_residual=True),
    "8 bits": spec(1024, 100, 8, 32, has_bias=True),
    "gated": spec(1024, 136, 4, 128, output_gate="silu"),
    "gated, odd outputs": spec(1024, 70, 4, 64, output_gate="gelu_tanh"),
}
TOKENS = (9, 16, 31, 64, 65, 128, 130, 250)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_blocks_of_a_cluster_add_up_their_parts(name: str, tmp_path: Path) -> None:
    built = build_for(RULE, CASES[name], TARGET, CONFIG)
    kernels = Emulated(built.source_for(*TOKENS), "cuda", tmp_path)
    for m in TOKENS:
        (launch,) = built.launches(m)
        assert 1 < launch.cluster <= 8
        assert launch.grid[0] % launch.cluster == 0
        check(kernels, built, CASES[name], m, rounded=m > 64)


@pytest.fixture(scope="module")
def four_bits() -> Built:
    return build_for(RULE, CASES["4 bits"], TARGET, CONFIG)


MEET = "  tvm_builtin_ptx_barrier_cluster_arrive_cluster_arrive_release_aligned();\n"
WAIT = "  tvm_builtin_ptx_barrier_cluster_wait_cluster_wait_acquire_aligned();\n"


@needs_compiler
@pytest.mark.parametrize("m", [64, 128, 130])
def test_each_barrier_is_missed(m: int, four_bits: Built, tmp_path: Path) -> None:
    source = four_bits.source_for(m)
    pieces = source.split(MEET + WAIT)
    # By `wgmma` sums come in turns: two barriers for each.
    assert len(pieces) - 1 == (4 if m == 128 else 2)
    for missing in range(1, len(pieces)):
        before, after = ((MEET + WAIT).join(part) for part in (pieces[:missing], pieces[missing:]))
        folder = tmp_path / str(missing)
        folder.mkdir()
        with pytest.raises(BundleError, match="went wrong") as error:
            check(Emulated(before + after, "cuda", folder), four_bits, CASES["4 bits"], m, rounded=m > 64)
        assert re.search("of the cluster|missing barrier|uninitialised", error.value.why), error.value.why


@needs_compiler
@pytest.mark.parametrize("m", [16, 64, 128, 150])
def test_results_are_those_of_a_second_kernel_to_the_bit(m: int, four_bits: Built, tmp_path: Path) -> None:
    case = CASES["4 bits"]
    alone = build_for(RULE, case, TARGET, replace(CONFIG, clusters=False))
    found = []
    for name, built in {"clusters": four_bits, "alone": alone}.items():
        assert len(built.launches(m)) == (1 if name == "clusters" else 2)
        folder = tmp_path / name
        folder.mkdir()
        arrays = random_arrays(case, m, LAYOUTS["mma_fragments"])
        Emulated(built.source_for(m), "cuda", folder).run(built, arrays, m)
        found.append(arrays["y"])
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize(
    ("tiles", "sms", "most", "parts"),
    [
        (32, 132, 8, 4),  # as many clusters of four as an H100 has room for
        (33, 132, 8, None),  # four would be one too many, and of three fit as few
        (64, 132, 8, 2),
        (43, 132, 8, None),
        (16, 132, 5, 5),
        (16, 132, 8, 8),
        (2, 132, 64, None),  # of 64 parts; more than eight are no cluster everywhere
        (132, 132, 8, None),
        (133, 132, 8, None),  # clusters would be whole tiles too
        (32, 132, 1, None),
        (1, 8, 8, None),  # fewer SMs than a processor has
    ],
)
def test_which_tiles_are_clusters(tiles: int, sms: int, most: int, parts: int | None) -> None:
    found = divide(tiles, sms, most, clusters=True)
    assert found.clustered == (parts is not None)
    if found.clustered:
        assert (found.whole, found.rest, found.parts) == (0, tiles, parts)
    assert are_clusters(tiles, sms, most) == found.clustered
    alone = divide(tiles, sms, most)
    assert not alone.clustered
    assert replace(found, clustered=False) == alone


def test_clusters_are_for_targets_that_have_them() -> None:
    case = spec(4096, 4096, 4, 128)
    assert default_hopper_config(case, 132, 232448, clusters=True).clusters
    for name, has in {"nvidia-h100": True, "nvidia-b200": True, "cuda": False, "nvidia-l4": False}.items():
        assert resolve(name).has_clusters == has
    launches = build_for(RULE, case, TARGET).launches(64)
    assert [(one.grid, one.cluster) for one in launches] == [((128, 1, 1), 4)]
    built = build_for(RULE, case, TARGET)
    for m, clusters in {64: [4], 128: [4], 129: [4], 512: [2], 513: [1], 1100: [1, 1], 2048: [1]}.items():
        assert [one.cluster for one in built.launches(m)] == clusters, m
