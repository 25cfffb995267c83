"""Hopper's kernels in the emulator against float64, and what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest

from awq_tvm.compile.toolchain.nvcc import FLAGS, Nvcc, read_report
from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.cuda.config import FewConfig, TiledConfig
from awq_tvm.schedules.cuda.hopper import HopperRule
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig, default_hopper_config
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.rule import Chosen, NotApplicable, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.gpu.machine_code import disassemble, find_disassembler, read_listing
from tests.support.gpu_kernels import Built, Emulated, build_for, check, needs_compiler

RULE, TARGET = HopperRule(), resolve("nvidia-h100")
EVERYTHING = {"has_bias": True, "has_residual": True, "activation_function": "silu"}


def spec(K: int, N: int, bits: int, group_size: int, **more: object) -> MatmulSpec:
    return MatmulSpec(K, N, bits, group_size, **{"dtype": "float16", **more})


# K of fewer blocks than stages and of more, N ragged against fragment and tile, every kind of group.
CASES = {
    "groups of 64": spec(192, 100, 4, 64, **EVERYTHING),
    "groups of 32": spec(576, 35, 4, 32, has_residual=True),
    "groups across blocks": spec(192, 20, 4, 96, has_bias=True),
    "groups of 128": spec(512, 260, 4, 128),
    "one group": spec(448, 130, 4, 448),
    "8 bits": spec(320, 130, 8, 64, **EVERYTHING),
    "8 bits, groups of 32": spec(128, 17, 8, 32),
    "3 bits": spec(192, 9, 3, 192),
    "2 bits, one block": spec(64, 16, 2, 64),
    "bfloat16": spec(192, 104, 4, 64, dtype="bfloat16", **EVERYTHING),
    "bfloat16, groups of 32": spec(128, 35, 3, 32, dtype="bfloat16"),
    "bfloat16, 8 bits": spec(320, 40, 8, 64, dtype="bfloat16", has_bias=True),
    "gated": spec(192, 136, 4, 64, output_gate="silu"),
}
# From M = 33 on the two kernels of warpgroups, each as small as it can be seen to work.
SMALL = HopperConfig(
    (FewConfig(1, 1, 2),), (TiledConfig(4, 1, 1), WarpgroupConfig(64, 1)), WarpgroupConfig(32, 2, 2, 4), sms=1
)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_spec(name: str, tmp_path) -> None:
    built = build_for(RULE, CASES[name], TARGET, SMALL)
    kernels = Emulated(built.source, "cuda", tmp_path)
    for m in (1, 17, 33, 64, 65, 90):
        # Weights are rounded to the dtype before they are multiplied only where `wgmma` does.
        check(kernels, built, CASES[name], m, rounded=m > 32)


@pytest.fixture(scope="module")
def small() -> Built:
    return build_for(RULE, CASES["groups of 128"], TARGET, SMALL)


@needs_compiler
def test_a_symmetric_weight_is_one_whose_zero_points_are_equal(small: Built, tmp_path, monkeypatch) -> None:
    pack = LAYOUTS["mma_fragments"].pack
    found = []

    def symmetric(case, q, scales, zeros):
        zeros[:] = 8
        found.append(zeros)
        return pack(case, q, scales, zeros)

    monkeypatch.setattr(LAYOUTS["mma_fragments"], "pack", symmetric)
    kernels = Emulated(small.source_for(65), "cuda", tmp_path)
    check(kernels, small, CASES["groups of 128"], 65, rounded=True)
    assert found


OTHER_CONFIGS = {
    "one warpgroup, every column": WarpgroupConfig(256, 1, 1, 3),
    "four warpgroups": WarpgroupConfig(64, 1, 4, 6),
    "three tiles": WarpgroupConfig(48, 3, 1, 4),
}


@needs_compiler
@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_sizes_compute_the_same(name: str, tmp_path) -> None:
    case = CASES["groups of 64"]
    config = HopperConfig((FewConfig(1, 1, 2),), (TiledConfig(1, 1, 2, 2),), OTHER_CONFIGS[name], sms=1)
    built = build_for(RULE, case, TARGET, config)
    kernels = Emulated(built.source_for(40, 100), "cuda", tmp_path)
    for m in (40, 100):
        check(kernels, built, case, m, rounded=True)


@needs_compiler
@pytest.mark.parametrize(
    "case",
    [
        spec(1024, 136, 4, 64, **EVERYTHING),
        spec(1024, 130, 4, 128, dtype="bfloat16", has_residual=True),
        spec(1024, 136, 4, 128, output_gate="silu"),
    ],
    ids=lambda case: f"{case.dtype}, {case.output_gate}",
)
def test_k_divided_among_blocks_computes_the_same(case: MatmulSpec, tmp_path) -> None:
    config = HopperConfig(
        (FewConfig(1, 1, 2),),
        (WarpgroupConfig(16, 1, 1, 4, split_blocks=1),),
        WarpgroupConfig(32, 1, 2, split_blocks=1),
        sms=5,
    )
    built = build_for(RULE, case, TARGET, config)
    kernels = Emulated(built.source_for(16, 17, 65), "cuda", tmp_path)
    # Three columns of 64 outputs stay whole; of 128 there are two: 2 x 2, 4, 5 + 1 x 4, 5 + 3, 10.
    for m, blocks, divided in ((16, 3, 0), (17, 4, 2), (33, 4, 0), (65, 9, 1), (97, 8, 0), (130, 10, 0)):
        first, *adds = built.launches(m)
        assert first.grid == (blocks, 1, 1), m
        assert [launch.grid[1] for launch in adds] == [divided] * (divided > 0), m
        check(kernels, built, case, m, rounded=True)


@needs_compiler
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("__syncthreads();", "uninitialised"),
        ("tvm_builtin_ptx_cp_async_wait_group_async_wait_group_1();", "asynchronous copy"),
        ("tvm_builtin_ptx_fence_proxy_proxy_async_shared__cta();", "missing fence.proxy.async"),
        ("tvm_builtin_ptx_wgmma_fence_fence_sync_aligned();", "missing wgmma.fence"),
        ("tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_7();", "a wgmma under way reads"),
        ("tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_0();", "of an accumulator"),
    ],
)
def test_every_synchronisation_is_needed(line: str, said: str, small: Built, tmp_path) -> None:
    """Without it the emulator objects, so with it there is no race it can see."""
    case, built = CASES["groups of 128"], small
    kernel = built.launches(65)[0].kernel
    head, body = built.source_for(65).rsplit(f'extern "C" __global__ void __launch_bounds__(256) {kernel}', 1)
    assert line in body
    source = f'{head}extern "C" __global__ void __launch_bounds__(256) {kernel}{body.replace(line, "")}'
    with pytest.raises(BundleError) as error:
        check(Emulated(source, "cuda", tmp_path), built, case, 65, rounded=True)
    assert said in error.value.why


@pytest.fixture(scope="module")
def square():
    return build_for(RULE, spec(4096, 4096, 4, 128), TARGET)


@pytest.mark.parametrize(
    ("m", "kernel", "blocks", "cluster", "divided"),
    [
        (8, "mm_kernel", 128, 1, 0),
        (64, "mm_kernel_3", 32 * 4, 4, 0),
        # Tiles of 128 x 128: of the larger the blocks of a cluster would have twice as much to read of each other.
        (65, "mm_kernel_4", 32 * 4, 4, 0),
        (200, "mm_kernel_5", 32 * 4, 4, 0),
        (512, "mm_kernel_5", 64 * 2, 2, 0),
        (769, "mm_kernel_6", 112, 1, 0),
        (1100, "mm_kernel_6", 132 + 12 * 5, 1, 12),
        (2048, "mm_kernel_6", 256, 1, 0),
    ],
)
def test_from_65_tokens_on_warpgroups_multiply(
    m: int, kernel: str, blocks: int, cluster: int, divided: int, square
) -> None:
    first, *adds = square.launches(m)
    assert (first.kernel, first.grid, first.cluster) == (kernel, (blocks, 1, 1), cluster)
    assert [launch.grid[1] for launch in adds] == [divided] * (divided > 0)
    body = square.source.rsplit(f"{kernel}(", 1)[1].split('extern "C"')[0]
    assert ("wgmma_f16_rs_mma_async" in body) == (m > 64)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 64)])
def test_shared_memory_is_what_the_configuration_says(bits: int, group_size: int) -> None:
    case = spec(2048, 200, bits, group_size)
    config = default_hopper_config(case, TARGET.num_sms, TARGET.shared_memory_bytes)
    built = build_for(RULE, case, TARGET)
    for one, m in ((config.middle[-1], 65), (config.many, 100_000)):
        assert one.shared_bytes(bits, group_size) == built.launches(m)[0].shared_bytes


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize(
    ("bits", "group_size", "dtype"),
    [(4, 128, "float16"), (4, 32, "float16"), (8, 64, "float16"), (4, 128, "bfloat16"), (8, 64, "bfloat16")],
)
def test_products_overlap_and_nothing_spills(bits: int, group_size: int, dtype: str, tmp_path) -> None:
    case = spec(2048, 4096, bits, group_size, dtype=dtype)
    config = default_hopper_config(case, TARGET.num_sms, TARGET.shared_memory_bytes)
    stages = 5 if bits <= 4 else 4
    last, many = WarpgroupConfig(128, 1, 2, stages), WarpgroupConfig(128, 2, 2, stages + 1)
    config = dataclasses.replace(config, middle=(*config.middle[:-1], last), many=many)
    built = build_for(RULE, case, TARGET, config)
    assert "part_sums" in built.source.rsplit(" mm_kernel_9(", 1)[1].split(")")[0]
    path = tmp_path / "kernels.cu"
    path.write_text(built.source_for(65, 10_000))
    cubin = tmp_path / "kernels.cubin"
    command = [Nvcc.find().nvcc, "-cubin", "-arch=sm_90a", *FLAGS, "-o", cubin, path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = read_report(said.stdout + said.stderr)
    own = [kernel for kernel in kernels if kernel.name in ("mm_kernel_7", "mm_kernel_9")]
    assert (
        [kernel.spill_store_bytes for kernel in own] == [kernel.spill_load_bytes for kernel in own] == [0, 0]
    )
    registers = {kernel.name: kernel.registers for kernel in own}
    # Two blocks of the smaller tile share an SM, unless wide codes pass through float32; one of the larger has it
    # for itself.
    assert registers["mm_kernel_7"] <= (168 if bits == 8 and dtype == "bfloat16" else 128)
    assert registers["mm_kernel_9"] <= 255
    listing = disassemble(cubin)
    assert listing is not None
    for name in ("mm_kernel_7", "mm_kernel_9"):
        code = read_listing(listing)[name]
        products = [one for one in code.instructions if one.startswith("HGMMA")]
        assert products, name
        assert all(one.endswith(".BF16") == (dtype == "bfloat16") for one in products), name
        assert code.count("HMMA", "LDG", "LDL", "STL") == 0, name
        copies = [one for one in code.instructions if one.startswith("LDGSTS")]
        assert copies, name
        assert all(one.endswith(".128") for one in copies), name
        stores = [one for one in code.instructions if one.startswith("STG")]
        assert stores, name
        assert all(one == "STG.E.128" for one in stores), name
    # Where the assembler sees no other way, it waits for each product and says so.
    assert "serialized" not in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("target", "case", "reason"),
    [
        (resolve("cuda"), spec(128, 64, 4, 64), "sm_90a alone"),
        (resolve("nvidia-b200"), spec(128, 64, 4, 64), "sm_90a alone"),
        (dataclasses.replace(TARGET, ptx_arch="compute_90"), spec(128, 64, 4, 64), "sm_90a alone"),
        (TARGET, spec(128, 64, 4, 64, dtype="float32"), "float32"),
        (TARGET, spec(96, 64, 4, 32), "whole blocks"),
        (dataclasses.replace(TARGET, shared_memory_bytes=100_000), spec(128, 64, 4, 64), "shared memory"),
    ],
)
def test_what_it_cannot_do_is_left_to_the_others(target, case: MatmulSpec, reason: str) -> None:
    answer = RULE.applies(case, target)
    assert isinstance(answer, NotApplicable)
    assert reason in answer.reason
    chosen = select(case, target)
    assert isinstance(chosen, Chosen)
    assert chosen.rule.name != RULE.name


def test_hopper_is_asked_first() -> None:
    assert select(spec(128, 64, 4, 64), TARGET).rule.name == RULE.name
    assert select(spec(128, 64, 4, 64), resolve("nvidia-h200")).rule.name == RULE.name
    assert select(spec(128, 64, 4, 64, dtype="bfloat16"), TARGET).rule.name == RULE.name


@pytest.mark.parametrize(
    "make",
    [
        lambda: WarpgroupConfig(8, 1),
        lambda: WarpgroupConfig(100, 1),
        lambda: WarpgroupConfig(272, 1),
        lambda: WarpgroupConfig(128, 0),
        lambda: WarpgroupConfig(128, 1, 9),
        lambda: WarpgroupConfig(256, 2),
        lambda: WarpgroupConfig(16, 1, 2),
        lambda: WarpgroupConfig(128, 1, 2, 2),
        lambda: WarpgroupConfig(128, 1, split_blocks=0),
        lambda: HopperConfig((), (), WarpgroupConfig(128, 1)),
        lambda: HopperConfig((), (TiledConfig(4, 2),), WarpgroupConfig(128, 1), sms=0),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        make()
