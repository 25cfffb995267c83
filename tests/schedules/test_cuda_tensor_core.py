"""The tensor-core kernels in the emulator against float64, and what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import shutil
from functools import cache

import pytest

from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.defaults import default_config
from awq_tvm.schedules.cuda.division import divide, division_of, part_step
from awq_tvm.schedules.cuda.hopper_config import default_hopper_config
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.cuda.tile_outputs import place
from awq_tvm.schedules.rule import Chosen, NotApplicable, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import Built, Emulated, build_for, check, needs_compiler

RULE, TARGET = TensorCoreRule(), resolve("cuda")
TOKENS = (1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130)
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
    "bfloat16": spec(192, 100, 4, 64, dtype="bfloat16", **EVERYTHING),
    "bfloat16, short groups": spec(128, 17, 4, 32, dtype="bfloat16"),
    "bfloat16, 8 bits": spec(128, 40, 8, 64, dtype="bfloat16", has_bias=True),
    "gated": spec(192, 100, 4, 64, output_gate="silu"),
    "gated, odd outputs, bfloat16": spec(128, 70, 4, 32, dtype="bfloat16", output_gate="gelu_tanh"),
}


# Each kind of weight meets every size of tile; what is special about groups and widths beside, some of each kind.
EVERY_SIZE = ("4 bits", "long groups", "8 bits", "bfloat16")
SOME_SIZES = TensorCoreConfig(
    (FewConfig(1, 1, 4), FewConfig(2, 1, 4)), (TiledConfig(4, 2, 1, 4, 3, 2),), TiledConfig(4, 1, 1), sms=1
)


@cache
def every_size(name: str) -> Built:
    return build_for(RULE, CASES[name], TARGET)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_spec(name: str, tmp_path) -> None:
    built = every_size(name) if name in EVERY_SIZE else build_for(RULE, CASES[name], TARGET, SOME_SIZES)
    kernels = Emulated(built.source_for(*TOKENS), "cuda", tmp_path)
    for m in TOKENS:
        check(kernels, built, CASES[name], m)


OTHER_CONFIGS = {
    "two tiles a block, two stages": TensorCoreConfig(
        (FewConfig(1, 2, 2, stages=2),),
        (TiledConfig(2, 1, stages=2),),
        TiledConfig(4, 1, 1, 4, stages=3),
        sms=1,
    ),
    "warps that divide k": TensorCoreConfig(
        (FewConfig(2, 2, 2),), (TiledConfig(1, 1, 2, 1, 2, 3),), TiledConfig(2, 2, 1, 1, 3, 2), sms=1
    ),
    "16 tokens for 128 outputs": TensorCoreConfig(
        (FewConfig(1, 1, 2),), (TiledConfig(2, 2, 1, 4, 6, 2),), TiledConfig(2, 2, 1, 1, 3, 2), sms=1
    ),
    "one warp": TensorCoreConfig(
        (FewConfig(3, 1, 1),), (TiledConfig(4, 1, 1, 1),), TiledConfig(4, 3, 2, 2), sms=1
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_sizes_compute_the_same(name: str, tmp_path) -> None:
    case = CASES["4 bits"]
    built = build_for(RULE, case, TARGET, OTHER_CONFIGS[name])
    kernels = Emulated(built.source_for(1, 9, 17, 65), "cuda", tmp_path)
    for m in (1, 9, 17, 65):
        check(kernels, built, case, m)


@needs_compiler
@pytest.mark.parametrize(("K", "group_size", "dtype"), [(128, 128, "float16"), (512, 256, "bfloat16")])
def test_two_blocks_of_a_group_are_scaled_at_once(K: int, group_size: int, dtype: str, tmp_path) -> None:
    """K of one run, which the stages are longer than, and of several and more than a group."""
    case = spec(K, 40, 4, group_size, dtype=dtype)
    config = TensorCoreConfig(
        (FewConfig(1, 1, 2),), (TiledConfig(1, 1, 2, 1),), TiledConfig(4, 4, 1, 1), sms=1
    )
    assert config.many.run_of(group_size) == 2
    built = build_for(RULE, case, TARGET, config)
    check(Emulated(built.source_for(45), "cuda", tmp_path), built, case, 45)


@pytest.mark.parametrize(
    ("tile", "group_size", "run"),
    [
        (TiledConfig(8, 2), 128, 2),
        (TiledConfig(8, 2), 192, 1),
        (TiledConfig(8, 2, 1, 4, 4, 2), 128, 1),
        (TiledConfig(4, 2), 128, 1),  # of which two blocks share an SM
        (TiledConfig(8, 4), 128, 1),  # whose sums are all that registers hold
    ],
)
def test_sums_are_held_twice_where_there_is_room(tile: TiledConfig, group_size: int, run: int) -> None:
    assert tile.run_of(group_size) == run


# Tiles of 32 tokens and of 16, and of 32 outputs: on five SMs, parts of two blocks of k and more, shorter than the
# stages and longer.
DIVIDED = TensorCoreConfig(
    (FewConfig(1, 1, 2),),
    (TiledConfig(4, 1, 1, 2, 4, 2, split_blocks=1),),
    TiledConfig(2, 1, 1, 2, 3, split_blocks=1),
    5,
)
# Tiles that are divided first, as long as these are fewer than the SMs, and behind whole rounds.
ROUNDS = {
    32: (0, 2, 2),
    33: (5, 1, 3),
    48: (5, 1, 3),
    49: (8, 0, 1),
    65: (10, 0, 1),
    81: (10, 2, 2),
}


@needs_compiler
@pytest.mark.parametrize(
    "case",
    [
        spec(448, 36, 4, 64, **EVERYTHING),
        spec(448, 64, 8, 32, has_bias=True),
        spec(448, 40, 4, 64, dtype="bfloat16", **EVERYTHING),
        spec(448, 56, 4, 64, output_gate="silu"),
    ],
    ids=lambda case: f"{case.bits} bits, {case.dtype}, {case.out_features}",
)
def test_k_divided_among_blocks_computes_the_same(case: MatmulSpec, tmp_path) -> None:
    built = build_for(RULE, case, TARGET, DIVIDED)
    kernels = Emulated(built.source_for(*ROUNDS), "cuda", tmp_path)
    for m, (whole, rest, parts) in ROUNDS.items():
        first, *adds = built.launches(m)
        # Codes of 8 bits are more to read beside sums: of one tile in three parts they make five.
        most = 5 if case.bits == 8 and parts == 3 else parts
        assert first.grid == (whole + rest * most, 1, 1), m
        assert [launch.grid[1] for launch in adds] == [rest] * (rest > 0), m
        check(kernels, built, case, m)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parts_of_a_kernel_that_scales_two_blocks_of_k_at_once_begin_at_every_second(dtype, tmp_path) -> None:
    case = spec(768, 72, 4, 128, dtype=dtype, has_residual=True)
    many = TiledConfig(4, 4, 1, 1, split_blocks=1)
    config = TensorCoreConfig((FewConfig(1, 1, 2),), (TiledConfig(1, 1, 2, 1),), many, sms=3)
    assert many.run_of(128) == 2
    built = build_for(RULE, case, TARGET, config)
    kernels = Emulated(built.source_for(33, 97), "cuda", tmp_path)
    # Two columns of 64 outputs: 4 = 3 + 1 in three parts of four blocks of k; 6 whole; 8 = 6 + 2, which stay whole.
    for m, blocks in ((33, 6), (65, 6), (97, 8)):
        assert built.launches(m)[0].grid == (blocks, 1, 1)
        check(kernels, built, case, m)


@needs_compiler
def test_parts_of_warps_that_take_turns_are_even_where_k_is(tmp_path) -> None:
    """Ten blocks of k in three parts: of two, four and four, so that no warp has fewer rounds than its neighbour."""
    tile = TiledConfig(4, 1, 1, 2, 4, 2, split_blocks=1)
    config = dataclasses.replace(DIVIDED, middle=(tile,), sms=3)
    case = spec(640, 32, 4, 128, has_bias=True)
    assert part_step(case, tile) == 2
    assert part_step(spec(448, 32, 4, 64), tile) == 1
    built = build_for(RULE, case, TARGET, config)
    assert built.launches(32)[0].grid == (3, 1, 1)
    check(Emulated(built.source_for(32), "cuda", tmp_path), built, case, 32)


@pytest.mark.parametrize("sms", [1, 5, 132])
@pytest.mark.parametrize("most", [1, 3, 200])
def test_tiles_are_divided_so_that_no_sm_gets_more_than_a_part_of_the_last_round(sms: int, most: int) -> None:
    for tiles in range(1, 4 * sms + 1):
        found = divide(tiles, sms, most)
        assert found.whole + found.rest == tiles
        assert found.sums <= sms
        assert 1 <= found.parts <= most or not found.rest
        if found.rest:
            assert found.whole % sms == 0
            assert found.parts > 1
            # One part more of each would be one more round, or more than there may be.
            assert found.parts == most or found.rest * (found.parts + 1) > sms
        else:
            assert found.blocks == tiles
            assert most == 1 or tiles % sms == 0 or 2 * (tiles % sms) > sms


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
    built = every_size("4 bits")
    head, kernels = built.source_for(m).split('extern "C" __global__ void', 1)
    kernels = kernels.replace(line, "")
    if line.startswith("__syncwarp"):
        head = head.replace(line, "")
    emulated = Emulated(head + 'extern "C" __global__ void' + kernels, "cuda", tmp_path)
    with pytest.raises(BundleError) as error:
        check(emulated, built, case, m)
    assert said in error.value.why


@pytest.fixture(scope="module")
def in_slices() -> Built:
    """Kernels whose sums leave eight tokens of each warp at a time, twice."""
    config = TensorCoreConfig(
        (FewConfig(1, 1, 2),), (TiledConfig(2, 2, 4, 2, 2, 2),), TiledConfig(2, 2, 4, 4, 2), sms=1
    )
    return build_for(RULE, spec(128, 136, 4, 64), TARGET, config)


@needs_compiler
@pytest.mark.parametrize("barrier", [1, 2, 3])
@pytest.mark.parametrize("m", [33, 65])
def test_each_barrier_around_the_sums_is_needed(m: int, barrier: int, in_slices: Built, tmp_path) -> None:
    """Behind the loop: before sums take the place of x and codes, before others read them, and before the next."""
    case, built = spec(128, 136, 4, 64), in_slices
    kernel = built.launches(m + 32)[0].kernel
    head, body = built.source_for(m + 32).rsplit(f" {kernel}(", 1)
    pieces = body.split('extern "C"')[0].split("__syncthreads();")
    # In the loop, and twice two behind it.
    assert len(pieces) == 6
    joined = "__syncthreads();".join(pieces[: 1 + barrier]) + "__syncthreads();".join(pieces[1 + barrier :])
    broken = f"{head} {kernel}({body.replace('__syncthreads();'.join(pieces), joined)}"
    with pytest.raises(BundleError) as error:
        check(Emulated(broken, "cuda", tmp_path), built, case, m + 32)
    assert "missing barrier" in error.value.why


@pytest.mark.parametrize("rows", [64, 128, 192, 256])
def test_sums_pass_through_shared_memory_without_a_conflict(rows: int) -> None:
    """All banks once: by 32 threads that write a number, and by eight at a time that read four."""
    for first_row in range(0, rows, 8):
        written = [place(rows, lane % 4 * 2, first_row + lane // 4) % 32 for lane in range(32)]
        assert len(set(written)) == 32
    for width in (4, 8):
        for thread in range(0, 2 * rows // width, 8):
            for half in range(0, width, 4):
                pieces = [divmod((thread + i) * width, rows) for i in range(8)]
                banks = [place(rows, token, row + half) % 32 // 4 for token, row in pieces]
                assert len(set(banks)) == 8, (width, pieces)


@pytest.fixture(scope="module")
def square():
    """For 132 SMs, without clusters."""
    case, target = spec(4096, 4096, 4, 128), resolve("nvidia-h100")
    return build_for(RULE, case, target, default_config(case, target.num_sms, target.shared_memory_bytes))


@pytest.mark.parametrize(
    ("m", "kernel", "blocks", "divided"),
    [
        (8, "mm_kernel", 128, 0),
        # 32 tiles for 132 SMs: four parts; 64 tiles: two; 128: one.
        (16, "mm_kernel_1", 32 * 4, 32),
        (32, "mm_kernel_3", 32 * 4, 32),
        (64, "mm_kernel_5", 32 * 4, 32),
        (65, "mm_kernel_7", 32 * 4, 32),
        (200, "mm_kernel_7", 64 * 2, 64),
        (385, "mm_kernel_7", 128, 0),
        # Behind a round of 132 tiles 28 in four parts, 60 in two; 92 stay whole.
        (513, "mm_kernel_7", 132 + 28 * 4, 28),
        (768, "mm_kernel_7", 132 + 60 * 2, 60),
        (769, "mm_kernel_7", 224, 0),
    ],
)
def test_blocks_are_about_as_many_as_sms(m: int, kernel: str, blocks: int, divided: int, square) -> None:
    first, *adds = square.launches(m)
    assert (first.kernel, first.grid) == (kernel, (blocks, 1, 1))
    assert [launch.grid[1] for launch in adds] == [divided] * (divided > 0)


def test_sums_of_parts_take_a_fixed_room_whatever_m_is(square) -> None:
    # Of a tile of 128 x 128 for each SM.
    assert square.host.workspaces == {"part_sums": 132 * 128 * 128 * 4}


@pytest.mark.parametrize(
    ("K", "N", "target", "parts"),
    [
        (4096, 4096, "nvidia-h100", 4),
        (4096, 4096, "nvidia-a10", 2),
        (4096, 4096, "cuda", 3),  # which names no GPU
        (4096, 11008, "nvidia-h100", 1),
        (4096, 14336, "nvidia-h100", 1),
        (960, 1024, "nvidia-h100", 1),  # 15 blocks of k are not twice eight
        (4096, 16, "nvidia-h100", 8),
    ],
)
def test_wide_or_short_linears_and_smaller_gpus_are_divided_less(K, N, target, parts) -> None:
    case = spec(K, N, 4, 64)
    config = RULE.applies(case, resolve(target)).config
    division = division_of(case, config, config.middle[-1], 64)
    assert (division.parts if division.rest else 1) == parts


@pytest.mark.parametrize(
    ("K", "N", "target", "tiles", "stages"),
    [
        (4096, 1024, "nvidia-h100", 1, 4),
        (512, 4096, "nvidia-h100", 2, 4),  # 128 blocks: one on an SM
        (512, 8192, "nvidia-h100", 2, 3),  # two
        (512, 2304, "nvidia-a10", 2, 4),
        (576, 3072, "nvidia-a100", 2, 4),
        (576, 3072, "cuda", 2, 3),  # 96 blocks: two on some SMs of an A10, and one would have waited
    ],
)
def test_few_tokens_take_two_tiles_a_block_where_blocks_are_many(K, N, target, tiles, stages) -> None:
    few = RULE.applies(spec(K, N, 4, 64), resolve(target)).config.few
    assert [(one.tiles, one.stages) for one in few] == [(tiles, 4), (tiles, stages)]


@pytest.mark.parametrize(
    ("K", "N", "target", "few"),
    [
        (4096, 4096, "nvidia-h100", 8),
        (4096, 11008, "nvidia-h100", 8),  # 86 blocks of 132
        (4096, 1024, "nvidia-h100", 16),  # eight tiles in eight parts are 64
        (576, 960, "nvidia-h100", 16),
        (4096, 1024, "nvidia-a10", 8),
    ],
)
def test_sixteen_tokens_are_read_by_few_blocks_where_those_fill_half_of_the_sms(K, N, target, few) -> None:
    case, gpu = spec(K, N, 4, 64), resolve(target)
    for config in (
        RULE.applies(case, gpu).config,
        default_hopper_config(case, gpu.num_sms, gpu.shared_memory_bytes),
    ):
        assert config.few[-1].most_tokens == few
        assert config.middle[0].tokens == (16 if few == 8 else 32)
        assert config.middle[0].rows == 128


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 64)])
def test_shared_memory_is_what_the_configuration_says(bits: int, group_size: int) -> None:
    case = spec(2048, 200, bits, group_size)
    config = default_config(case, None, TARGET.shared_memory_bytes)
    built = build_for(RULE, case, TARGET)
    sizes = zip((*config.few, *config.middle, config.many), (1, 16, 32, 64, 10_000), strict=True)
    for one, m in sizes:
        dynamic = built.launches(m)[0].shared_bytes
        static = 4 * one.warps * 8 * one.eights * (16 * one.tiles + 4) if isinstance(one, FewConfig) else 0
        assert one.shared_bytes(bits, group_size) == dynamic + static


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("bits", "arch"),
    [
        (4, "sm_80"),
        (8, "sm_90"),
        pytest.param(4, "sm_90", marks=pytest.mark.slow),
        pytest.param(8, "sm_80", marks=pytest.mark.slow),
    ],
)
def test_nothing_spills(bits: int, arch: str, tmp_path) -> None:
    source = build_for(RULE, spec(2048, 4096, bits, 128, **EVERYTHING), TARGET).source
    path = tmp_path / "kernels.cu"
    path.write_text(source)
    _, _, kernels = Nvcc.find().compile(path, (arch,), None)
    assert len(kernels) == 9
    assert all(kernel.spill_store_bytes == kernel.spill_load_bytes == 0 for kernel in kernels)
    # Of 65,536 registers: three blocks of the kernel for a few tokens share an SM, two of those for 16 and 32, one of
    # the others has room; and 1,024 threads that add parts.
    names = ("", *(f"_{number}" for number in range(1, 9)))
    limits = dict(zip(names, (80, 128, 64, 128, 64, 255, 64, 255, 64), strict=True))
    for kernel in kernels:
        assert kernel.registers <= limits[kernel.name.removeprefix("mm_kernel")], kernel


def test_weights_come_16_bytes_at_a_time_and_go_to_tensor_cores() -> None:
    source = every_size("4 bits").source
    for kernel in source.split('extern "C" __global__ void')[6:]:
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
        lambda: TiledConfig(8, 2, k_warps=0),
        lambda: TiledConfig(8, 2, split_blocks=0),
        lambda: TiledConfig(1, 4, 8, 2, stages=2),
        lambda: TensorCoreConfig((FewConfig(1, 1, 4),), (), TiledConfig(8, 2)),
        lambda: TensorCoreConfig((FewConfig(1, 1, 4),), (TiledConfig(4, 2),), TiledConfig(8, 2), sms=0),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        make()
