"""Norms, gates, rotation and appending on GPUs: in the emulator against float64, and their machine code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
import tvm

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError
from awq_tvm.schedules.attention.gpu.append import append_on_gpu
from awq_tvm.schedules.attention.gpu.lanes import exchange_of
from awq_tvm.schedules.attention.gpu.rotary import split_and_rotate_on_gpu
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.gpu.gate import gated
from awq_tvm.schedules.gpu.head_norm import Part, norm_heads
from awq_tvm.schedules.gpu.norm import rms_norm
from awq_tvm.schedules.gpu.vectors import vectors_of
from awq_tvm.targets import resolve
from benchmarks.gpu.machine_code import disassemble, find_disassembler, read_listing
from tests.support.gpu_kernels import Emulated, needs_compiler

Dialect = Literal["cuda", "metal"]
Array = np.ndarray[Any, Any]
TARGETS = {"cuda": "nvidia-a100", "metal": "metal"}
EPS = 1e-5
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def host_part(func: Any, dialect: Dialect) -> HostPart:
    return HostPart(func.with_attr("global_symbol", "rows"), resolve(TARGETS[dialect]))


def norm(dialect: Dialect, features: int, dtype: str, *, gathered: bool = False) -> HostPart:
    target = tvm.target.Target(resolve(TARGETS[dialect]).tvm_target_with_host)
    return host_part(rms_norm(features, EPS, dtype, exchange_of(target), gathered=gathered), dialect)


def run(host: HostPart, dialect: Dialect, folder: Path, arrays: dict[str, Array], **extents: int) -> None:
    Emulated(host.source, dialect, folder).launch(host.launches(extents), arrays)


def assert_near(found: Array, expected: Array, dtype: str, zero: float = 1e-3) -> None:
    """By the dtype's rounding; results as small as ``zero`` by that of ``zero``."""
    assert (np.abs(found.astype(float) - expected) <= ROUNDING[dtype] * (np.abs(expected) + zero)).all()


# A part of a warp, several rows a warp; one warp and idle lanes; several; more vectors than threads.
NORMS = [
    ("cuda", 16, "bfloat16"),
    ("cuda", 576, "float16"),
    ("cuda", 4104, "float16"),
    ("metal", 104, "float32"),
    ("metal", 2048, "float16"),
]


@needs_compiler
@pytest.mark.parametrize(("dialect", "features", "dtype"), NORMS)
def test_rows_are_normalised(dialect: Dialect, features: int, dtype: str, tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), 9
    x = random.standard_normal((rows, features)).astype(DTYPES[dtype])
    x[3] = 0
    weight = random.standard_normal(features).astype(DTYPES[dtype])
    guarded = np.full((rows + 2, features), np.nan, DTYPES[dtype])
    run(
        norm(dialect, features, dtype),
        dialect,
        tmp_path,
        {"x": x, "weight": weight, "y": guarded[1:-1]},
        n=rows,
    )
    wide = x.astype(float)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + EPS) * weight.astype(float)
    assert_near(guarded[1:-1], expected, dtype)
    assert np.isnan(guarded[[0, -1]].astype(float)).all()


@needs_compiler
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_rows_are_picked_and_none_beyond_the_matrix(dialect: Dialect, tmp_path: Path) -> None:
    random, features = np.random.default_rng(1), 576
    x, weight = random.standard_normal((6, features), np.float32), np.ones(features, np.float32)
    positions = np.array([5, 0, 6, -1, 2**31 - 1], np.int32)
    y = np.full((5, features), np.nan, np.float32)
    arrays = {"x": x, "weight": weight, "y": y, "positions": positions}
    run(norm(dialect, features, "float32", gathered=True), dialect, tmp_path, arrays, n=6, m=5)
    wide = x[[5, 0, 5, 0, 5]].astype(float)
    assert_near(y, wide / np.sqrt((wide**2).mean(1, keepdims=True) + EPS), "float32")


@needs_compiler
def test_the_barrier_of_a_long_row_is_needed(tmp_path: Path) -> None:
    host = norm("cuda", 576, "float16")
    host.source = host.source.replace("__syncthreads();", "")
    x = np.ones((1, 576), np.float16)
    with pytest.raises(BundleError, match="went wrong") as error:
        run(host, "cuda", tmp_path, {"x": x, "weight": x[0], "y": np.empty_like(x)}, n=1)
    assert "nobody wrote" in error.value.why


@needs_compiler
@pytest.mark.parametrize(
    ("dialect", "head_dim", "dtype"),
    [("cuda", 16, "bfloat16"), ("cuda", 128, "float16"), ("metal", 264, "float32")],
)
def test_heads_are_normalised_beside_those_that_are_not(
    dialect: Dialect, head_dim: int, dtype: str, tmp_path: Path
) -> None:
    random, rows = np.random.default_rng(6), 3
    parts = (Part(4, True), Part(2, True), Part(1, False), Part(1, True))
    x = random.standard_normal((rows, 8 * head_dim)).astype(DTYPES[dtype])
    weights = random.standard_normal((4, head_dim)).astype(DTYPES[dtype])
    guarded = np.full((rows + 2, 8 * head_dim), np.nan, DTYPES[dtype])
    target = tvm.target.Target(resolve(TARGETS[dialect]).tvm_target_with_host)
    func = norm_heads(parts, head_dim, EPS, dtype, exchange_of(target))
    arrays = {"x": x, "y": guarded[1:-1], **{f"weight{i}": weights[i] for i in (0, 1, 3)}}
    run(host_part(func, dialect), dialect, tmp_path, arrays, n=rows)
    heads = x.astype(float).reshape(rows, 8, head_dim)
    of_head = weights.astype(float)[[0, 0, 0, 0, 1, 1, 2, 3]]
    expected = heads / np.sqrt((heads**2).mean(2, keepdims=True) + EPS) * of_head
    expected[:, 6] = heads[:, 6]
    assert_near(guarded[1:-1], expected.reshape(rows, -1), dtype)
    assert np.isnan(guarded[[0, -1]].astype(float)).all()


@needs_compiler
@pytest.mark.parametrize(("dialect", "function"), [("cuda", "silu"), ("metal", "gelu_tanh")])
def test_gates_are_rounded_once(dialect: Dialect, function: str, tmp_path: Path) -> None:
    random, features, rows = np.random.default_rng(2), 136, 9
    x = (3 * random.standard_normal((rows, 2 * features))).astype(np.float16)
    guarded = np.full((rows + 2, features), np.nan, np.float16)
    run(
        host_part(gated(function, features, "float16"), dialect),
        dialect,
        tmp_path,
        {"x": x, "y": guarded[1:-1]},
        n=rows,
    )
    gate, up = x.astype(float)[:, :features], x.astype(float)[:, features:]
    cubic = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    applied = gate / (1 + np.exp(-gate)) if function == "silu" else 0.5 * gate * (1 + np.tanh(cubic))
    # 1 + tanh(x) of a large negative x is what float32 leaves of it.
    assert_near(guarded[1:-1], applied * up, "float16", 2e-2)
    assert np.isnan(guarded[[0, -1]]).all()


SHAPES = {
    "a group": ("cuda", AttentionShape(6, 2, 24, "float16")),
    "bfloat16": ("cuda", AttentionShape(3, 1, 8, "bfloat16")),
    "float32": ("metal", AttentionShape(4, 4, 40, "float32")),
}


@needs_compiler
@pytest.mark.parametrize("name", SHAPES)
def test_q_and_k_are_rotated_and_v_is_not(name: str, tmp_path: Path) -> None:
    dialect, shape = SHAPES[name]
    random, tokens, half = np.random.default_rng(3), 5, shape.head_dim // 2
    dtype = DTYPES[shape.dtype]
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    qkv = random.standard_normal((tokens, sum(heads), shape.head_dim)).astype(dtype)
    positions = np.array([0, 1, 17, 100, 2047], np.int32)
    frequencies = (1e4 ** -(np.arange(half) / half)).astype(np.float32)
    arrays = {"qkv": qkv, "position_map": positions, "inverse_frequency": frequencies}
    arrays |= {
        n: np.full((tokens, h, shape.head_dim), np.nan, dtype) for n, h in zip("qkv", heads, strict=True)
    }
    host = host_part(split_and_rotate_on_gpu(shape), dialect)
    run(host, dialect, tmp_path, arrays, tokens=tokens, position_map_offset=0)
    # The angle itself is a float32 product.
    angle = (positions[:, None].astype(np.float32) * frequencies).astype(float)[:, None]
    low, high = qkv.astype(float)[..., :half], qkv.astype(float)[..., half:]
    rotated = np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=2
    )
    wanted = np.split(rotated, np.cumsum(heads)[:-1], axis=1)
    for part, expected in zip("qk", wanted, strict=False):
        error = np.abs(arrays[part].astype(float) - expected)
        assert error.max() <= 2 * ROUNDING[shape.dtype] * np.abs(expected).max()
    np.testing.assert_array_equal(arrays["v"], qkv[:, -shape.kv_heads :])


@needs_compiler
@pytest.mark.parametrize("name", SHAPES)
def test_keys_and_values_go_to_their_pages(name: str, tmp_path: Path) -> None:
    dialect, shape = SHAPES[name]
    random, dtype = np.random.default_rng(4), DTYPES[shape.dtype]
    positions = np.array([3 * PAGE_SIZE + 15, 0, -1, PAGE_SIZE], np.int32)
    k, v = random.standard_normal((2, 4, shape.kv_heads, shape.head_dim)).astype(dtype)
    pages = np.zeros((4, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim), dtype)
    expected = pages.copy()
    for token, position in enumerate(positions):
        if position >= 0:
            expected[position // PAGE_SIZE, 0, :, position % PAGE_SIZE] = k[token]
            expected[position // PAGE_SIZE, 1, :, position % PAGE_SIZE] = v[token]
    arrays = {"pages": pages, "k": k, "v": v, "position_map": positions}
    host = host_part(append_on_gpu(shape), dialect)
    run(host, dialect, tmp_path, arrays, tokens=4, num_pages=4, position_map_offset=0)
    np.testing.assert_array_equal(pages, expected)


def test_one_token_is_spread_over_several_blocks() -> None:
    llama = AttentionShape(32, 8, 128, "float16")
    (rotation,) = host_part(split_and_rotate_on_gpu(llama), "cuda").launches(
        {"tokens": 1, "position_map_offset": 0}
    )
    assert (rotation.grid, rotation.block) == ((1, 12, 1), (64, 1, 1))
    (row,) = norm("cuda", 4096, "float16").launches({"n": 1})
    assert (row.grid, row.block) == ((1, 1, 1), (512, 1, 1))
    (heads,) = norm("cuda", 128, "float16").launches({"n": 40})
    assert (heads.grid, heads.block) == ((5, 1, 1), (128, 1, 1))


def test_only_whole_vectors_are_rows() -> None:
    assert [vectors_of(features, "float16") for features in (8, 576, 4, 12)] == [1, 72, 0, 0]
    assert (vectors_of(12, "float32"), vectors_of(8, "float64")) == (3, 0)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed")
def test_nothing_is_spilled_and_all_is_read_in_vectors(tmp_path: Path) -> None:
    llama = AttentionShape(32, 8, 128, "float16")
    # How many numbers of global memory are read by themselves: a position, and where angles are beyond 105,615 the
    # digits of pi that each sine and cosine asks for.
    cases = {
        "norm": (norm("cuda", 4096, "float16"), 128, 0),
        "picked": (norm("cuda", 4096, "float16", gathered=True), 128, 1),
        "gate": (host_part(gated("silu", 14336, "float16"), "cuda"), 128, 0),
        "rotary": (host_part(split_and_rotate_on_gpu(llama), "cuda"), 64, 9),
        "append": (host_part(append_on_gpu(llama), "cuda"), 128, 1),
    }
    for name, (host, width, narrow) in cases.items():
        source = tmp_path / f"{name}.cu"
        source.write_text(host.source)
        _, (cubin,), (kernel,) = Nvcc.find().compile(source, ("sm_80",), None)
        listing = disassemble(cubin)
        assert listing is not None
        (code,) = read_listing(listing).values()
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == 0, name
        loads = [one for one in code.instructions if re.match(r"LDG?\.", one)]
        stores = [one for one in code.instructions if re.match(r"STG?\.", one)]
        assert loads, name
        assert stores, name
        assert any(f".{width}" in one for one in loads), (name, loads)
        assert len([one for one in loads if not re.search(r"\.(64|128)", one)]) <= narrow, (name, loads)
        assert all(f".{width}" in one for one in stores), (name, stores)
        assert kernel.registers <= 48, name
