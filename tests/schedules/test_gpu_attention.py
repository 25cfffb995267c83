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
from awq_tvm.schedules.attention.gpu.choose import decode_on_gpu, has_tensor_kernel
from awq_tvm.schedules.attention.gpu.config import default_decode_config, default_tensor_config
from awq_tvm.schedules.attention.gpu.decode import decode_paged
from awq_tvm.schedules.attention.gpu.tensor_decode import MOST_FEATURES, tensor_decode_paged
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.targets import resolve
from tests.support.gpu_attention import BOUND, run_decode
from tests.support.gpu_kernels import Emulated, needs_compiler

Dialect = Literal["cuda", "metal"]
Kind = Literal["tensor cores", "cuda", "metal"]
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
    "two eights of heads": AttentionShape(10, 1, 64, "float16", sliding_window=33),
    "three warps of heads": AttentionShape(20, 1, 256, "float16"),
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


def build(kind: Kind, shape: AttentionShape) -> HostPart:
    dialect: Dialect = "metal" if kind == "metal" else "cuda"
    target = resolve(TARGETS[dialect])
    if kind == "tensor cores":
        func = tensor_decode_paged(shape, default_tensor_config(shape, SMS))
    else:
        config = default_decode_config(shape, dialect, SMS)
        func = decode_paged(shape, tvm.target.Target(target.tvm_target_with_host), config)
    return HostPart(func.with_attr("global_symbol", "attend"), target)


def emulated(kind: Kind, shape: AttentionShape, folder: Path) -> tuple[HostPart, Emulated]:
    host = build(kind, shape)
    return host, Emulated(host.source, "metal" if kind == "metal" else "cuda", folder)


@needs_compiler
@pytest.mark.parametrize("kind", ["tensor cores", "cuda", "metal"])
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_decoding_is_attention(name: str, kind: Kind, tmp_path: Path) -> None:
    shape = SHAPES[name]
    if shape.dtype == "bfloat16" and kind == "metal":
        pytest.skip("Metal computes in float16")
    if kind == "tensor cores" and (shape.dtype == "float32" or shape.head_dim > MOST_FEATURES):
        pytest.skip("there is no such kernel")
    host, kernels = emulated(kind, shape, tmp_path)
    for lengths in BATCHES:
        error, sum_error = run_decode(kernels, host, shape, lengths)
        assert error < BOUND[shape.dtype], lengths
        assert sum_error < 3e-6, lengths


@needs_compiler
@pytest.mark.parametrize("kind", ["tensor cores", "metal"])
def test_a_long_window_far_into_a_context(kind: Kind, tmp_path: Path) -> None:
    """The first keys that are seen lie in the middle of a page, and of the run of a block's."""
    shape = AttentionShape(2, 1, 64, "float16", sliding_window=150)
    host, kernels = emulated(kind, shape, tmp_path)
    for lengths in ((405,), (405, 149, 150, 151), (405,) * 9):
        assert max(run_decode(kernels, host, shape, lengths)) < BOUND["float16"]


@needs_compiler
@pytest.mark.parametrize("kind", ["tensor cores", "cuda", "metal"])
def test_the_barrier_is_needed(kind: Kind, tmp_path: Path) -> None:
    """Without it the emulator objects, so with it there is no race it can see."""
    shape = SHAPES["a group of four"]
    host = build(kind, shape)
    barrier = r"__syncthreads\(\);|threadgroup_barrier\(mem_flags::mem_threadgroup\);"
    # One in each of the kernels that read pages; the one that merges has none.
    assert len(re.findall(barrier, host.source)) == 2
    source = re.sub(barrier, "", host.source)
    kernels = Emulated(source, "metal" if kind == "metal" else "cuda", tmp_path)
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


@pytest.mark.parametrize("kind", ["tensor cores", "cuda", "metal"])
def test_what_the_source_says(kind: Kind) -> None:
    """Pages are read 16 bytes at a time and only so, and no shuffle leaves its 32 lanes."""
    source = build(kind, AttentionShape(32, 8, 128, "float16")).source
    assert not re.search(r"pages_ptr\)?\[", source)
    pages = re.findall(r"\*\((?:device )?(\w+)\s?\*\)\(\(\((?:device )?uint\s?\*\)pages_ptr\)", source)
    # In both kernels that read pages: keys and values of four keys a lane, or a lane's share of a page.
    assert pages == ["uint4"] * (32 if kind == "tensor cores" else 16)
    shuffle = r"simd_shuffle_xor\(\w+\[\d+\], \(ushort\)(\d+)\)|__shfl_xor_sync\([^;]*?, (\d+)\)"
    distances = {int(one or other) for one, other in re.findall(shuffle, source)}
    assert distances == ({1, 2} if kind == "tensor cores" else {1, 2, 4, 8, 16})


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("tensor cores", (32, 8, 128)),
        ("tensor cores", (16, 1, 128)),
        ("tensor cores", (8, 4, 256)),
        ("cuda", (64, 8, 128)),
        ("cuda", (9, 3, 64)),
    ],
    ids=str,
)
def test_nothing_is_spilled_and_two_blocks_fit(
    kind: Kind, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    path = tmp_path / "kernels.cu"
    host = build(kind, AttentionShape(*shape, "float16"))
    path.write_text(host.source)
    (threads,) = {int(n) for n in re.findall(r"__launch_bounds__\((\d+)\)", host.source)} - {32}
    _, (_, ptx), kernels = Nvcc.find().compile(path, ("sm_90",), "compute_90")
    assert len(kernels) == 3
    for kernel in kernels:
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == 0, kernel
        assert kernel.registers <= 65536 // (2 * threads), kernel
    assert re.search(r"ld\.global(?:\.nc)?(?:\.L\w+::\w+)*\.v4\.[bu]32", ptx.read_text())
    assert ("mma.sync.aligned.m16n8k16" in ptx.read_text()) == (kind == "tensor cores")


@pytest.mark.parametrize(
    ("target", "shape", "there"),
    [
        ("nvidia-h100", AttentionShape(8, 2, 64, "float16"), True),
        ("nvidia-h100", AttentionShape(8, 2, 64, "bfloat16"), True),
        ("nvidia-h100", AttentionShape(8, 2, 64, "float32"), False),
        ("nvidia-h100", AttentionShape(8, 2, 264, "float16"), False),
        ("nvidia-t4", AttentionShape(8, 2, 64, "float16"), False),
        ("metal", AttentionShape(8, 2, 64, "float16"), False),
    ],
    ids=str,
)
def test_tensor_cores_where_there_are_any(target: str, shape: AttentionShape, there: bool) -> None:
    built_for = tvm.target.Target(resolve(target).tvm_target_with_host)
    assert has_tensor_kernel(shape, built_for) == there
    assert ("mma" in str(decode_on_gpu(shape, built_for, SMS))) == there


def test_every_warp_has_something_to_do() -> None:
    for shape in SHAPES.values():
        config = default_decode_config(shape, "metal")
        assert config.heads * config.head_warps >= shape.group > config.heads * (config.head_warps - 1)
        assert config.threads <= 256
        assert config.blocks == 16
        tensor = default_tensor_config(shape)
        assert 8 * tensor.eights * tensor.head_warps >= shape.group
        assert tensor.blocks == 216


@pytest.mark.parametrize(
    "change",
    [{"lanes": 3}, {"lanes": 64}, {"key_warps": 3}, {"unroll": 0}, {"heads": 0}, {"blocks": 0}],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    config = default_decode_config(SHAPES["a group of four"], "cuda")
    with pytest.raises(UnsupportedError, match="not consistent"):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize("change", [{"eights": 3}, {"key_warps": 0}, {"blocks": 0}], ids=str)
def test_sizes_for_tensor_cores_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    config = default_tensor_config(SHAPES["a group of four"])
    with pytest.raises(UnsupportedError, match="not consistent"):
        dataclasses.replace(config, **change)
