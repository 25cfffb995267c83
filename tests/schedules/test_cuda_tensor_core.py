"""The tensor-core kernels in the emulator against float64, and what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig, default_config
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.rule import Chosen, NotApplicable, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import Emulated, build_for, check, launch_for, needs_compiler

RULE, TARGET = TensorCoreRule(), resolve("cuda")
TOKENS = (1, 2, 7, 8, 9, 16, 17, 64, 65, 130)
EVERYTHING = {"has_bias": True, "has_residual": True, "activation_function": "silu"}


def spec(K: int, N: int, bits: int, group_size: int, **more: object) -> MatmulSpec:
    return MatmulSpec(K, N, bits, group_size, **{"dtype": "float16", **more})


# K of fewer blocks than warps, N ragged against fragment and tile, groups shorter than a block, as long, longer.
CASES = {
    "4 bits": spec(192, 100, 4, 64, **EVERYTHING),
    "short groups": spec(320, 35, 4, 32, has_residual=True),
    "groups across blocks": spec(192, 20, 4, 96, has_bias=True),
    "long groups": spec(256, 130, 4, 128),
    "8 bits": spec(320, 130, 8, 64, **EVERYTHING),
    "8 bits, short groups": spec(128, 17, 8, 32),
    "3 bits, channel": spec(192, 9, 3, 192),
    "2 bits, one block": spec(64, 16, 2, 64),
}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_spec(name: str, tmp_path) -> None:
    func, source = build_for(RULE, CASES[name], TARGET)
    kernels = Emulated(source, "cuda", tmp_path)
    for m in TOKENS:
        check(kernels, func, CASES[name], m)


OTHER_CONFIGS = {
    "two tiles a block, two stages": TensorCoreConfig(
        (FewConfig(1, 2, 2, stages=2),), TiledConfig(2, 1, stages=2), TiledConfig(4, 1, 1, 4, stages=3)
    ),
    "one warp": TensorCoreConfig((FewConfig(3, 1, 1),), TiledConfig(4, 1, 1, 1), TiledConfig(4, 3, 2, 2)),
}


@needs_compiler
@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_sizes_compute_the_same(name: str, tmp_path) -> None:
    case = CASES["4 bits"]
    func, source = build_for(RULE, case, TARGET, OTHER_CONFIGS[name])
    kernels = Emulated(source, "cuda", tmp_path)
    for m in (1, 17, 65):
        check(kernels, func, case, m)


@needs_compiler
@pytest.mark.parametrize(
    ("line", "m", "said"),
    [
        ("__syncwarp();", 1, "missing barrier"),
        ("__syncthreads();", 1, "uninitialised"),
        ("__syncthreads();", 65, "uninitialised"),
        ("tvm_builtin_ptx_cp_async_wait_group_async_wait_group_2();", 1, "asynchronous copy"),
    ],
)
def test_every_synchronisation_is_needed(line: str, m: int, said: str, tmp_path) -> None:
    """Without it the emulator objects, so with it there is no race it can see."""
    case = CASES["4 bits"]
    func, source = build_for(RULE, case, TARGET)
    head, kernels = source.split('extern "C" __global__ void', 1)
    kernels = kernels.replace(line, "")
    if line.startswith("__syncwarp"):
        head = head.replace(line, "")
    emulated = Emulated(head + 'extern "C" __global__ void' + kernels, "cuda", tmp_path)
    with pytest.raises(BundleError) as error:
        check(emulated, func, case, m)
    assert said in error.value.why


def test_host_part_picks_the_kernel_by_m() -> None:
    func, _ = build_for(RULE, spec(2048, 200, 4, 64), TARGET)
    one, few, middle, many = (launch_for(func, "m", m) for m in (8, 16, 64, 65))
    assert (one.index, one.grid, one.block) == (0, (13, 1, 1), (256, 1, 1))
    assert (few.index, few.grid, few.block) == (1, (13, 1, 1), (256, 1, 1))
    assert (middle.index, middle.grid, middle.block) == (2, (4, 1, 1), (256, 1, 1))
    assert (many.index, many.grid, many.block) == (3, (2, 1, 1), (256, 1, 1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_shared_memory_is_what_the_configuration_says(bits: int, group_size: int) -> None:
    case = spec(2048, 200, bits, group_size)
    config = default_config(case.in_features, bits)
    func, _ = build_for(RULE, case, TARGET)
    for one, m in ((config.few[0], 1), (config.few[1], 16), (config.middle, 64), (config.many, 65)):
        dynamic = launch_for(func, "m", m).dynamic_shared_bytes
        static = 4 * one.warps * 8 * one.eights * (16 * one.tiles + 4) if isinstance(one, FewConfig) else 0
        assert one.shared_bytes(bits, group_size) == dynamic + static


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_spills(bits: int, tmp_path) -> None:
    _, source = build_for(RULE, spec(2048, 4096, bits, 128, **EVERYTHING), TARGET)
    path = tmp_path / "kernels.cu"
    path.write_text(source)
    _, _, kernels = Nvcc.find().compile(path, ("sm_80", "sm_90"), None)
    assert len(kernels) == 8
    assert all(kernel.spill_store_bytes == kernel.spill_load_bytes == 0 for kernel in kernels)
    # Of 65,536 registers: three blocks of the kernels for a few tokens share an SM, one of those for many has room.
    limits = {"mm_kernel": 80, "mm_kernel_1": 80, "mm_kernel_2": 128, "mm_kernel_3": 255}
    for kernel in kernels:
        assert kernel.registers <= limits[kernel.name], kernel


def test_weights_come_16_bytes_at_a_time_and_go_to_tensor_cores() -> None:
    _, source = build_for(RULE, CASES["4 bits"], TARGET)
    for kernel in source.split('extern "C" __global__ void')[5:]:
        assert "cp_async_cg_async_cg_shared_global_16(" in kernel
        assert "mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(" in kernel
        assert "qweight_ptr)[" in kernel


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (spec(64, 16, 4, 32, dtype="float32"), "float32"),
        (spec(64, 16, 4, 32, activations="int8"), "int8"),
        (spec(96, 16, 4, 32), "whole blocks"),
        (spec(64, 16, 4, 16), "multiple of 32"),
    ],
)
def test_what_it_cannot_do_is_left_to_the_portable_kernels(case: MatmulSpec, reason: str) -> None:
    answer = RULE.applies(case, TARGET)
    assert isinstance(answer, NotApplicable)
    assert reason in answer.reason


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (resolve("nvidia-t4"), "sm_75 lacks"),
        (dataclasses.replace(TARGET, shared_memory_bytes=48 * 1024), "shared memory"),
    ],
)
def test_gpus_that_lack_something_are_left_to_the_portable_kernels(target, reason: str) -> None:
    case = spec(128, 64, 4, 64)
    assert reason in RULE.applies(case, target).reason
    chosen = select(case, target)
    assert isinstance(chosen, Chosen)
    assert chosen.rule.name == "cuda_simt_matmul"


@pytest.mark.parametrize(
    "make",
    [
        lambda: FewConfig(0, 1, 4),
        lambda: FewConfig(1, 1, 33),
        lambda: FewConfig(8, 8, 4),
        lambda: FewConfig(1, 1, 4, stages=1),
        lambda: TiledConfig(8, 0),
        lambda: TiledConfig(16, 4),
        lambda: TiledConfig(1, 1, 8, 8),
        lambda: TiledConfig(1, 1, 1, 4),
        lambda: TiledConfig(8, 2, stages=1),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        make()
