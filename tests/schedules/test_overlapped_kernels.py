"""Kernels of decoding that begin before the launch before them has ended: on Hopper, in the emulator and its code."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import tvm

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError
from awq_tvm.passes.overlap_launches import OverlapLaunches
from awq_tvm.schedules.attention.gpu.append import append_on_gpu
from awq_tvm.schedules.attention.gpu.choose import decode_on_gpu
from awq_tvm.schedules.attention.gpu.lanes import exchange_of
from awq_tvm.schedules.attention.gpu.rotary import split_and_rotate_on_gpu
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.cuda.config import FewConfig, TiledConfig
from awq_tvm.schedules.cuda.hopper import HopperRule
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig, default_hopper_config
from awq_tvm.schedules.gpu.candidates import find_candidates
from awq_tvm.schedules.gpu.gate import gated
from awq_tvm.schedules.gpu.head_norm import Part, norm_heads
from awq_tvm.schedules.gpu.norm import rms_norm
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.gpu.emulated import launch_emulated
from benchmarks.gpu.machine_code import MachineCode, disassemble, find_disassembler, read_listing
from tests.support.gpu_kernels import Built, Emulated, build_for, needs_compiler, random_arrays

TARGET = resolve("nvidia-h100")
WAIT = "tvm_builtin_ptx_griddepcontrol_wait();"
STORE = "  tvm_builtin_ptx_st_vec_shared_v4_b32("

SQUARE = MatmulSpec(256, 256, 4, 64, "float16")
# Up to 8 tokens, up to 32, and up to 64 by blocks that divide k.
SMALL = HopperConfig(
    (FewConfig(1, 1, 2), FewConfig(2, 2, 4, 3)),
    (TiledConfig(4, 1, 1, 2, 3, 2), TiledConfig(8, 1, 1, 2, 3, split_blocks=1)),
    WarpgroupConfig(64, 1),
    sms=16,
)


@pytest.fixture(scope="module")
def built() -> Built:
    return build_for(HopperRule(), SQUARE, TARGET, SMALL)


def run_twice(source: str, built: Built, m: int, folder: Path, *, waits_between: bool = False) -> np.ndarray:
    """The linear of the linear of x: launched as ever, and then to overlap on what the first has computed."""
    kernels = Emulated(source, "cuda", folder)
    arrays = random_arrays(SQUARE, m, LAYOUTS["mma_fragments"])
    arrays |= {name: np.full(size // 4, np.nan, np.float32) for name, size in built.host.workspaces.items()}
    y = np.full_like(arrays["y"], np.nan)
    launches = built.launches(m)
    kernels.launch([dataclasses.replace(one, overlaps=False) for one in launches], arrays)
    if waits_between:
        kernels.kernels.synchronize()
    for one in launches:
        given = {**arrays, "x": arrays["y"], "y": y}
        launch_emulated(kernels.kernels, one, given)
    return y


@needs_compiler
def test_what_the_launch_before_computes_is_waited_for(built: Built, tmp_path: Path) -> None:
    for m in (1, 8, 11, 20, 64):
        assert all(one.overlaps for one in built.launches(m))
        found = run_twice(built.source, built, m, tmp_path)
        assert np.isfinite(found).all()
        assert (found == run_twice(built.source, built, m, tmp_path, waits_between=True)).all()
    assert len(built.launches(64)) == 2
    assert not any(one.overlaps for one in built.launches(1000))


@needs_compiler
@pytest.mark.parametrize(("m", "kernel"), [(1, "mm_kernel"), (20, "mm_kernel_2")])
@pytest.mark.parametrize("plant", ["no wait", "a wait behind the first loads of x"])
def test_a_wait_that_is_missing_or_late_is_found(
    m: int, kernel: str, plant: str, built: Built, tmp_path: Path
) -> None:
    first, *_ = built.launches(m)
    assert first.kernel == kernel
    source = built.source.replace(WAIT, "")
    if plant != "no wait":
        source = source.replace(STORE, f"  {WAIT}{STORE}")
    with pytest.raises(BundleError, match="went wrong") as error:
        run_twice(source, built, m, tmp_path)
    assert "of 16 bytes before griddepcontrol.wait: kernel mm_kernel" in error.value.why
    assert "launched before, writes them and may still run" in error.value.why


@needs_compiler
def test_what_adds_parts_of_k_waits_for_them(built: Built, tmp_path: Path) -> None:
    first, adds = built.launches(64)
    head, body = built.source.rsplit(f"{adds.kernel}(", 1)
    source = f"{head}{adds.kernel}({body.replace(WAIT, '', 1)}"
    with pytest.raises(BundleError, match="went wrong") as error:
        run_twice(source, built, 64, tmp_path)
    assert f"kernel {first.kernel}, launched before, writes them" in error.value.why


def tvm_target() -> tvm.target.Target:
    return tvm.target.Target(TARGET.tvm_target_with_host)


def norm_of(features: int) -> HostPart:
    """A norm that asks for its weight before the wait."""
    exchange = exchange_of(tvm_target())
    func = rms_norm(features, 1e-5, "float16", exchange, gathered=False, weight_first=True)
    return HostPart(func.with_attr("global_symbol", "norm"), TARGET)


@needs_compiler
@pytest.mark.parametrize("features", [64, 576])
def test_a_norm_waits_for_its_rows_and_not_for_its_weight(features: int, tmp_path: Path) -> None:
    host, random = norm_of(features), np.random.default_rng(0)
    (launch,) = host.launches({"n": 5})
    assert launch.overlaps
    x, weight = (
        random.standard_normal((5, features), np.float32),
        random.standard_normal(features, np.float32),
    )
    first, second = np.empty((2, 5, features), np.float16)

    def run(source: str, given: dict[str, np.ndarray]) -> None:
        kernels = Emulated(source, "cuda", Path(mkdtemp(dir=tmp_path)))
        kernels.launch([dataclasses.replace(launch, overlaps=False)], arrays)
        launch_emulated(kernels.kernels, launch, given)

    arrays = {"x": x.astype(np.float16), "weight": weight.astype(np.float16), "y": first}
    run(host.source, {**arrays, "x": first, "y": second})
    expected = x.astype(np.float64)
    for _ in range(2):
        expected = expected / np.sqrt((expected**2).mean(1, keepdims=True) + 1e-5) * weight
    assert np.abs(second - expected).max() < 0.02
    # What a launch computes is no weight, and rows are waited for.
    for source, given in (
        (host.source, {**arrays, "weight": first[0], "y": second}),
        (host.source.replace(WAIT, ""), {**arrays, "x": first, "y": second}),
    ):
        with pytest.raises(BundleError, match="went wrong") as error:
            run(source, given)
        assert "launched before, writes them and may still run" in error.value.why


SHAPE = AttentionShape(32, 8, 128, "float16")
ROWS: dict[str, Callable[[], tvm.tirx.PrimFunc]] = {
    "rms_norm": lambda: rms_norm(4096, 1e-5, "float16", exchange_of(tvm_target()), gathered=False),
    "norm_heads": lambda: norm_heads(
        (Part(32, True), Part(8, True), Part(8, False)), 128, 1e-5, "float16", exchange_of(tvm_target())
    ),
    "gated": lambda: gated("silu", 14336, "float16"),
    "split_rotary": lambda: split_and_rotate_on_gpu(SHAPE),
    "append": lambda: append_on_gpu(SHAPE),
    "decode": lambda: decode_on_gpu(SHAPE, tvm_target(), TARGET.num_sms),
    "candidates": lambda: find_candidates(128256, tvm_target()),
}

needs_tools = pytest.mark.skipif(
    shutil.which("nvcc") is None or find_disassembler() is None, reason="nvcc or nvdisasm is not installed"
)


def machine_code(source: str, folder: Path) -> dict[str, MachineCode]:
    path = folder / "kernels.cu"
    path.write_text(source)
    _, (cubin,), kernels = Nvcc.find().compile(path, TARGET.cuda_archs, None)
    assert all(one.spill_store_bytes == one.spill_load_bytes == 0 for one in kernels)
    listing = disassemble(cubin)
    assert listing is not None
    return read_listing(listing)


def touches_memory(instructions: tuple[str, ...]) -> list[str]:
    """Those that read or write global memory."""
    kinds = ("LDG", "STG", "LDGSTS", "LD", "ST", "ATOM", "ATOMG", "RED", "UBLKCP", "UTMALDG")
    return [one for one in instructions if one.split(".")[0] in kinds]


def reads_constants(code: MachineCode) -> bool:
    """Whether it loads what never changes; of what launches write, past the cache that the wait makes valid."""
    return any(one.startswith("LDG") and "CONSTANT" in one for one in code.instructions)


def around_the_wait(code: MachineCode) -> tuple[list[str], list[str]]:
    """What touches global memory before and after the one wait; the next launch is let begin before anything does."""
    assert code.count("ACQBULK") == code.count("PREEXIT") == 1
    wait, begin = code.instructions.index("ACQBULK"), code.instructions.index("PREEXIT")
    before, after = code.instructions[:wait], code.instructions[wait:]
    assert begin < wait
    assert not touches_memory(before[:begin])
    return touches_memory(before), touches_memory(after)


@needs_tools
def test_copies_of_weights_are_under_way_before_the_wait(tmp_path: Path) -> None:
    case = MatmulSpec(4096, 4096, 4, 128, "float16")
    built = build_for(HopperRule(), case, TARGET)
    code = machine_code(built.source, tmp_path)
    stages = {"mm_kernel": 3, "mm_kernel_1": 5, "mm_kernel_2": 3, "mm_kernel_3": 2}
    for name, ahead in stages.items():
        before, after = around_the_wait(code[name])
        # Two tiles of codes of a warp, or eight of a block by 128 threads; scales and zero points.
        assert before == ahead * 4 * ["LDGSTS.E.BYPASS.128"], name
        assert "LDG.E.128" in after, name
        assert any(one.startswith("STG") for one in after), name
        assert not reads_constants(code[name]), name
    # Those on wgmma are for prompts, and are launched as ever.
    for name in ("mm_kernel_4", "mm_kernel_5", "mm_kernel_6"):
        assert code[name].count("ACQBULK", "PREEXIT") == 0

    alone = dataclasses.replace(default_hopper_config(case, 132, 232448), clusters=False)
    built = build_for(HopperRule(), case, TARGET, alone)
    _, adds = built.launches(16)
    before, after = around_the_wait(machine_code(built.source_for(16), tmp_path)[adds.kernel])
    assert not before
    assert "LDG.E.128" in after


@needs_tools
def test_a_norms_weight_is_asked_for_before_the_wait(tmp_path: Path) -> None:
    (code,) = machine_code(norm_of(4096).source, tmp_path).values()
    assert around_the_wait(code) == (["LDG.E.128"], ["LDG.E.128", "STG.E.128"])
    assert not reads_constants(code)


@needs_tools
@pytest.mark.parametrize("name", ROWS)
def test_other_kernels_touch_nothing_before_the_wait(name: str, tmp_path: Path) -> None:
    func = OverlapLaunches(TARGET).transform_module(tvm.IRModule({name: ROWS[name]()}), None)[name]
    kernels = machine_code(HostPart(func.with_attr("global_symbol", name), TARGET).source, tmp_path)
    assert kernels
    for code in kernels.values():
        before, after = around_the_wait(code)
        assert not before
        # A sine has a table of its own.
        assert reads_constants(code) == (name == "split_rotary")
        assert any(one.startswith("LDG") for one in after)
        assert any(one.startswith("STG") for one in after)
