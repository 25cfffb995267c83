"""Prefill on Apple's SIMD groups, in the emulator against float64, and what its source says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.attention.gpu.choose import prefill_on_gpu
from awq_tvm.schedules.attention.gpu.simdgroup_prefill import (
    simdgroup_prefill_paged,
    simdgroup_prefill_ragged,
)
from awq_tvm.schedules.attention.gpu.simdgroup_prefill_config import (
    SimdgroupPrefillConfig,
    ThreadgroupPlan,
    default_simdgroup_config,
)
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.targets import all_targets, resolve
from tests.support.banks import most_in_a_bank, vectors_stored
from tests.support.gpu_attention import BOUND
from tests.support.gpu_kernels import Emulated, needs_compiler
from tests.support.gpu_prefill import (
    SUM_BOUND,
    UNEVEN,
    check_paged,
    check_ragged,
    run_paged,
    run_ragged,
)

SHAPES = {
    "a group of four": AttentionShape(8, 2, 64, "float16"),
    "an odd group and a window": AttentionShape(3, 1, 32, "float16", sliding_window=20),
    "every head with keys of its own": AttentionShape(2, 2, 80, "float16"),
    "one eight of rows": AttentionShape(8, 1, 128, "float16", sliding_window=70),
    "features of one matrix": AttentionShape(4, 2, 8, "float16", sliding_window=1),
    "an odd number of eights": AttentionShape(3, 1, 72, "float16"),
    "queries in threadgroup memory": AttentionShape(4, 1, 256, "float16", sliding_window=33),
    "the same without a window": AttentionShape(2, 2, 136, "float16"),
}
FAST = ("a group of four", "an odd group and a window", "queries in threadgroup memory")


def build(kind: str, shape: AttentionShape, config: SimdgroupPrefillConfig | None = None) -> HostPart:
    made = {"ragged": simdgroup_prefill_ragged, "paged": simdgroup_prefill_paged}[kind]
    func = made(shape, config or default_simdgroup_config(shape))
    return HostPart(func.with_attr("global_symbol", "attend"), resolve("metal"))


NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "check"), [("ragged", check_ragged), ("paged", check_paged)])
def test_new_tokens_attend(name: str, kind: str, check: Callable[..., None], tmp_path: Path) -> None:
    """To one another, and to pages."""
    host = build(kind, SHAPES[name])
    kernels = Emulated(host.source, "metal", tmp_path)
    check(kernels, host, SHAPES[name], UNEVEN if name in FAST else slice(None))


BARRIER = re.compile(r"(threadgroup|simdgroup)_barrier\(mem_flags::mem_threadgroup\);")
BARRIERS = (
    "queries that have come",
    "a tile that is done with",
    "a tile that has come",
    "scores that are there",
    "factors that are there",
    "factors that were read",
    "factors of the second eight that are there",
    "scores that were read",
    "weights that are there",
    "shares that are there",
    "shares that were read",
    "shares of the second eight that are there",
    "the last tile that is done with",
    "sums that are there",
    "sums that were read",
    "sums of the second eight that are there",
)
OFTEN = (2, 5, 7)


@needs_compiler
@pytest.mark.parametrize(
    "which",
    [
        which if which in OFTEN else pytest.param(which, marks=pytest.mark.slow)
        for which in range(len(BARRIERS))
    ],
    ids=lambda which: BARRIERS[which],
)
def test_every_barrier_is_needed(which: int, tmp_path: Path) -> None:
    """Without it the emulator objects, so with it there is no race it can see."""
    shape = AttentionShape(4, 1, 16, "float16")
    host = build("ragged", shape, SimdgroupPrefillConfig(2, 2, 16, True))
    barriers = list(BARRIER.finditer(host.source))
    assert len(barriers) == len(BARRIERS)
    assert [one[1] for one in barriers].count("threadgroup") == 4
    start, end = barriers[which].span()
    kernels = Emulated(host.source[:start] + host.source[end:], "metal", tmp_path)
    with pytest.raises(BundleError) as error:
        run_ragged(kernels, host, shape, (40,))
    assert re.search(r"missing barrier|uninitialised", error.value.why)


@needs_compiler
def test_a_wrong_mask_is_seen(tmp_path: Path) -> None:
    """The bound is far below what a key too many or too few does."""
    shape = AttentionShape(4, 1, 16, "float16", sliding_window=20)
    host = build("paged", shape)
    assert host.source.count("- 19") > 0
    kernels = Emulated(host.source.replace("- 19", "- 18"), "metal", tmp_path)
    error, sum_error = run_paged(kernels, host, shape, (5, 33), (40, 31))
    assert error > 10 * BOUND["float16"]
    assert sum_error > 1e3 * SUM_BOUND


@pytest.mark.parametrize("head_dim", range(8, 264, 8))
def test_no_two_lanes_meet_in_a_bank(head_dim: int) -> None:
    shape = AttentionShape(4, 1, head_dim, "float16")
    config = default_simdgroup_config(shape)
    plan = ThreadgroupPlan(shape, config)
    lane, vectors = np.arange(32), head_dim // 8
    # Eight rows of a matrix of keys, values or queries; of weights; of scores or sums, half a matrix at a time.
    for stride in (plan.stride * 16, plan.scores_stride * 2):
        assert most_in_a_bank(np.arange(8) * stride, 16) == 1
    for stride in (plan.scores_stride * 4, plan.sums_stride * 4):
        assert most_in_a_bank(lane // 4 * stride + lane % 4 * 8, 8) == 1
    # A lane's weights; and copies, but where a row ends within a turn.
    assert most_in_a_bank(lane // 4 * plan.scores_stride * 2 + lane % 4 * 4, 4) == 1
    if vectors % 8 == 0:
        assert most_in_a_bank((lane // vectors * plan.stride + lane % vectors) * 16, 16) == 1


@pytest.mark.parametrize(
    ("shape", "rows", "memory"),
    [((9, 3, 64), 64, 20480), ((32, 8, 128), 32, 23552), ((8, 4, 256), 16, 27392)],
    ids=str,
)
def test_what_the_source_says(shape: tuple[int, int, int], rows: int, memory: int) -> None:
    """Counts of what is written, not of what Apple's compiler makes of it: there is none here."""
    sizes = AttentionShape(*shape, "float16")
    config = default_simdgroup_config(sizes)
    assert (config.tile_rows, ThreadgroupPlan(sizes, config).total) == (rows, memory)
    for kind in ("ragged", "paged"):
        source = build(kind, sizes).source
        assert re.findall(r"threadgroup \w+ \w+\[\d+\];", source) == [
            f"threadgroup uint4 staged[{memory // 16}];"
        ]
        eights, keys, features = config.row_eights, config.tile_keys // 8, shape[2] // 8
        products = 2 * eights * keys * features
        # Beside them those by diagonal matrices: where a row has found a higher score, and in the end.
        assert source.count("simdgroup_multiply_accumulate(") == products + 2 * eights * features
        # Keys, values, weights, diagonals; and queries, once or for each tile.
        loads = 2 * keys * features + eights * keys + eights * features + 2 * eights
        assert source.count("simdgroup_load(") == loads
        # Keys, values and queries come 16 bytes at a time, and only so; Metal casts no pointer without its memory.
        reads = re.findall(r"\*\((?:device )?(\w+)\*\)\(\(\(?(?:device )?uint\*\)(\w+)_ptr", source)
        copied = {"q", "k", "v"} if kind == "ragged" else {"q", "pages"}
        assert {name for _, name in reads} == copied
        assert {width for width, _ in reads} == {"uint4"}
        copies = vectors_stored(source, "staged", config.threads)
        assert copies
        assert [most_in_a_bank(16 * copy, 16) for copy in copies] == [1] * len(copies)
        assert not re.search(r"[(=+ ](?:q|k|v|pages)_ptr\)?\[", source)
        assert not re.search(r"\((?:uint|half|float)\d?\*\)", source)
        assert len(re.findall(r"\*\(device half4\*\)\(output_ptr", source)) == source.count("output_ptr") - 1
        assert "simd_shuffle(" not in source


@pytest.mark.parametrize("name", [target.name for target in all_targets() if target.kind == "metal"])
def test_every_apple_gpu_has_room(name: str) -> None:
    room = resolve(name).shared_memory_bytes or 0
    for head_dim in range(8, 264, 8):
        shape = AttentionShape(4, 1, head_dim, "float16")
        assert ThreadgroupPlan(shape, default_simdgroup_config(shape)).total <= room


@pytest.mark.parametrize(
    ("shape", "there"),
    [
        (AttentionShape(8, 2, 64, "float16"), True),
        (AttentionShape(8, 2, 72, "float16", sliding_window=9), True),
        (AttentionShape(8, 2, 256, "float16"), True),
        (AttentionShape(8, 2, 264, "float16"), False),
        (AttentionShape(8, 2, 64, "float32"), False),
        (AttentionShape(8, 2, 64, "bfloat16"), False),
    ],
    ids=str,
)
def test_where_there_is_one(shape: AttentionShape, there: bool) -> None:
    target = tvm.target.Target(resolve("metal").tvm_target_with_host)
    assert (prefill_on_gpu(shape, target) is not None) == there


@pytest.mark.parametrize("sizes", [(0, 1, 32), (4, 0, 32), (4, 1, 24), (4, 1, 0)], ids=str)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        SimdgroupPrefillConfig(*sizes, held_queries=True)
