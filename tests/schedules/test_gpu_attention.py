"""Decoding over pages on CUDA and Metal, in the emulator against float64, and what is built of it."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Literal

import pytest
import tvm

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.attention.gpu.config import DecodeConfig, default_decode_config
from awq_tvm.schedules.attention.gpu.decode import decode_paged
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.targets import resolve
from tests.support.gpu_attention import BOUND, run_decode
from tests.support.gpu_kernels import Emulated, needs_compiler

Dialect = Literal["cuda", "metal"]
TARGETS = {"cuda": "nvidia-h100", "metal": "metal"}
SMS = 8
"""So few that some batches fill them and others do not."""

SHAPES = {
    "a group of four": AttentionShape(8, 2, 64, "float16"),
    "every query head with keys of its own": AttentionShape(4, 4, 8, "float16"),
    "an odd group and features": AttentionShape(7, 1, 80, "float16"),
    "idle lanes": AttentionShape(6, 3, 96, "float16"),
    "a group in two warps": AttentionShape(16, 2, 128, "float16"),
    "one key a warp": AttentionShape(2, 1, 256, "float16"),
    "two vectors a lane": AttentionShape(2, 1, 320, "float16"),
    "pages of several chunks": AttentionShape(6, 2, 16, "float16", sliding_window=5),
    "float32 and a window": AttentionShape(9, 3, 64, "float32", sliding_window=20),
    "bfloat16": AttentionShape(4, 2, 32, "bfloat16"),
    "more heads than blocks": AttentionShape(20, 20, 16, "float16"),
}
# On both sides of pages and chunks; empty, alone, and so many that no context is divided.
BATCHES = ((1,), (70, 0, 16), (300,), (17, 5, 33, 1, 0, 130, 16, 64, 2))
FAST = (
    "a group of four",
    "bfloat16",
    "an odd group and features",
    "two vectors a lane",
    "pages of several chunks",
)


def build(dialect: Dialect, shape: AttentionShape, config: DecodeConfig | None = None) -> HostPart:
    target = resolve(TARGETS[dialect])
    config = config or default_decode_config(shape, dialect, SMS)
    func = decode_paged(shape, tvm.target.Target(target.tvm_target_with_host), config)
    return HostPart(func.with_attr("global_symbol", "attend"), target)


@needs_compiler
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_decoding_is_attention(name: str, dialect: Dialect, tmp_path: Path) -> None:
    shape = SHAPES[name]
    if shape.dtype == "bfloat16" and dialect == "metal":
        pytest.skip("Metal computes in float16")
    host = build(dialect, shape)
    kernels = Emulated(host.source, dialect, tmp_path)
    for lengths in BATCHES:
        error, sum_error = run_decode(kernels, host, shape, lengths)
        assert error < BOUND[shape.dtype], lengths
        assert sum_error < 3e-6, lengths


@needs_compiler
def test_a_long_window_far_into_a_context(tmp_path: Path) -> None:
    """The first keys that are seen lie in the middle of a page, and of the run of a block's."""
    shape = AttentionShape(2, 1, 64, "float16", sliding_window=150)
    host = build("metal", shape)
    kernels = Emulated(host.source, "metal", tmp_path)
    for lengths in ((405,), (405, 149, 150, 151), (405,) * 9):
        assert max(run_decode(kernels, host, shape, lengths)) < BOUND["float16"]


@needs_compiler
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_the_barrier_is_needed(dialect: Dialect, tmp_path: Path) -> None:
    """Without it the emulator objects, so with it there is no race it can see."""
    shape = SHAPES["a group of four"]
    host = build(dialect, shape)
    barrier = r"__syncthreads\(\);|threadgroup_barrier\(mem_flags::mem_threadgroup\);"
    # One in each of the kernels that read pages; the one that merges has none.
    assert len(re.findall(barrier, host.source)) == 2
    kernels = Emulated(re.sub(barrier, "", host.source), dialect, tmp_path)
    with pytest.raises(BundleError) as error:
        run_decode(kernels, host, shape, (300,))
    assert re.search("missing barrier|uninitialised", error.value.why)


def test_launches_depend_on_the_number_of_sequences_alone() -> None:
    """So they can be recorded; what blocks leave for each other takes memory of one size."""
    shape = SHAPES["a group of four"]
    host = build("metal", shape)
    blocks = 2 * SMS
    assert host.workspaces == {"split_sums": 4 * 64 * 4 * blocks, "split_states": 4 * 2 * 4 * blocks}

    def grids(batch: int, pages: int) -> list[tuple[int, int, int]]:
        values: dict[str, int | float] = {"batch": batch, "nnz_pages": pages, "num_pages": 1000}
        names = ("page_indptr", "page_values", "last_page_length", "key_position", "q_position")
        values |= {f"{name}_offset": 0 for name in names} | {"softmax_scale": 0.125}
        return [launch.grid for launch in host.launches(values)]

    assert grids(1, 3) == grids(1, 900) == [(1, 2, 8), (1, 8, 1)]
    assert grids(3, 3) == [(3, 2, 2), (3, 8, 1)]
    assert grids(4, 9) == [(4, 2, 2), (4, 8, 1)]
    assert grids(5, 9) == [(5, 2, 1)]


@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_what_the_source_says(dialect: Dialect) -> None:
    """Pages are read 16 bytes at a time and only so, and no shuffle leaves its 32 lanes."""
    source = build(dialect, AttentionShape(32, 8, 128, "float16")).source
    assert not re.search(r"pages_ptr\)?\[", source)
    pages = re.findall(r"\*\((?:device )?(\w+)\s?\*\)\(\(\((?:device )?uint\s?\*\)pages_ptr\)", source)
    # Keys and values of four keys, in both kernels that read pages.
    assert pages == ["uint4"] * 16
    shuffle = r"simd_shuffle_xor\(\w+\[\d+\], \(ushort\)(\d+)\)|__shfl_xor_sync\([^;]*?, (\d+)\)"
    distances = {int(one or other) for one, other in re.findall(shuffle, source)}
    assert distances == {1, 2, 4, 8, 16}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("shape", [(32, 8, 128), (64, 8, 128), (9, 3, 64), (8, 4, 256)], ids=str)
def test_nothing_is_spilled_and_two_blocks_fit(shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "kernels.cu"
    path.write_text(build("cuda", AttentionShape(*shape, "float16")).source)
    _, (_, ptx), kernels = Nvcc.find().compile(path, ("sm_90",), "compute_90")
    assert len(kernels) == 3
    for kernel in kernels:
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == 0, kernel
        assert kernel.registers <= 65536 // (2 * 256), kernel
    assert re.search(r"ld\.global(?:\.nc)?(?:\.L\w+::\w+)*\.v4\.[bu]32", ptx.read_text())


def test_every_warp_has_something_to_do() -> None:
    for shape in SHAPES.values():
        config = default_decode_config(shape, "metal")
        assert config.heads * config.head_warps >= shape.group > config.heads * (config.head_warps - 1)
        assert config.threads <= 256
        assert config.blocks == 16


@pytest.mark.parametrize(
    "change",
    [{"lanes": 3}, {"lanes": 64}, {"key_warps": 3}, {"unroll": 0}, {"heads": 0}, {"blocks": 0}],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    config = default_decode_config(SHAPES["a group of four"], "cuda")
    with pytest.raises(UnsupportedError, match="not consistent"):
        dataclasses.replace(config, **change)
