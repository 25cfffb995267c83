"""What the compiler makes of the CUDA kernels that are shipped: from its report and from the machine code."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.toolchain.result import Kernel
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.cost import A_SUM, BESIDE_SUMS
from awq_tvm.schedules.cuda.matmul import CUDA_MATMUL
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.rule import Match
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve
from benchmarks.gpu.count_table import blocks_of_sm
from benchmarks.gpu.machine_code import MachineCode, disassemble, find_disassembler, read_listing
from tests.support.gpu_kernels import build_for

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
    pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed"),
]

RULE = TensorCoreRule()
WIDE_LOAD = re.compile(r"ld\.global(?:\.nc)?(?:\.L\w+::\w+)*\.v4\.[bu]32")

MORE_REGISTERS = 32
"""How many more than the cost model thinks a kernel may take, which prunes by it what a tuner can choose;
those with two scales for each 64 k take 28."""
LEAST_WARPS = 8
"""Of an SM: two for each of its four schedulers, so that one multiplies while another decodes."""


@dataclass(frozen=True)
class Compiled:
    """A kernel on one architecture.

    Attributes:
        kernel: the compiler's report.
        code: its machine code.
        launch: of the largest M it serves.
        config: of a kernel that multiplies, None for one that adds parts of k.
    """

    kernel: Kernel
    code: MachineCode
    launch: Launch
    config: FewConfig | TiledConfig | None


def compiled(
    spec: MatmulSpec, target: Target, folder: Path, config: TensorCoreConfig | None = None
) -> list[Compiled]:
    """All kernels of a linear for the target's own architecture, in the order of M."""
    match = RULE.applies(spec, target)
    assert isinstance(match, Match), match
    config = config or match.config
    built = build_for(RULE, spec, target, config)
    source = folder / "kernels.cu"
    source.write_text(built.source)
    _, (cubin,), reports = Nvcc.find().compile(source, (str(target.sm_arch),), None)
    listing = disassemble(cubin)
    assert listing is not None
    code = read_listing(listing)
    report = {kernel.name: kernel for kernel in reports}
    ends = [(few.most_tokens, few) for few in config.few]
    ends += [(one.tokens, one) for one in config.middle] + [(1 << 14, config.many)]
    found: dict[str, Compiled] = {}
    for m, one in ends:
        for number, launch in enumerate(built.launches(m)):
            name = launch.kernel
            found[name] = Compiled(report[name], code[name], launch, None if number else one)
    # That for many tokens adds parts at some M and not at others.
    for name in report.keys() - found.keys():
        launch = next(each for m in range(1, 1 << 14) for each in built.launches(m) if each.kernel == name)
        found[name] = Compiled(report[name], code[name], launch, None)
    assert set(found) == set(report) == set(code)
    return list(found.values())


def hold_the_gates(spec: MatmulSpec, kernels: list[Compiled]) -> None:
    """Assert of each kernel what must hold on every architecture."""
    many = [one for one in kernels if one.config][-1]
    for one in kernels:
        where = (one.kernel, one.config)
        assert one.kernel.spill_store_bytes == one.kernel.spill_load_bytes == 0, where
        assert one.code.count("LDL", "STL") == 0, where
        loads, stores = (
            [name for name in one.code.instructions if name.startswith(kind)] for kind in ("LDG.", "STG.")
        )
        if spec.out_features % 8 == 0 and not isinstance(one.config, FewConfig):
            # Outputs, sums of parts, and what is added to them: 16 bytes at a time, or 8 of eight gated sums.
            assert stores, where
            assert all(".128" in name for name in loads), where
            narrower = ".64" if spec.output_gate is not None else ".128"
            assert all(".128" in name or narrower in name for name in stores), where
        if one.config is None:
            assert one.code.count("HMMA") == 0, where
            continue
        assert one.code.count("HMMA") > 0, where
        # Everything is copied 16 bytes at a time, and nothing else that is multiplied is read from global memory.
        copies = [name for name in one.code.instructions if name.startswith("LDGSTS")]
        assert copies, where
        assert all(name.endswith(".128") for name in copies), where
        # Where launches overlap, x of the first stages comes by plain loads behind the wait.
        assert not loads or spec.has_bias or spec.has_residual or one.code.count("ACQBULK"), where
        assert one.code.count("LD") == 0, where
        # Codes become numbers by their bits. Where a warp has few blocks of k there is no loop left.
        assert not [name for name in one.code.loop or one.code.instructions if name.startswith("I2F")], where
        sums = 4 * one.config.eights * one.config.tiles
        if one is many and isinstance(one.config, TiledConfig) and one.config.run_of(spec.group_size) > 1:
            # Scaled once for 128 k: of four matrix products and as many sums, twice.
            scaled, products = (
                sum(name.startswith(kind) for name in one.code.loop) for kind in ("FFMA", "HMMA")
            )
            assert products == 2 * scaled, where
            sums += sums // 2
        assert one.kernel.registers <= BESIDE_SUMS + A_SUM * sums + MORE_REGISTERS, where
        usage = {"registers": one.kernel.registers, "shared_bytes": one.kernel.shared_bytes}
        blocks = blocks_of_sm(one.kernel.arch, one.launch, usage)
        assert blocks * one.launch.block[0] // 32 >= LEAST_WARPS, (blocks, *where)


@pytest.mark.parametrize(
    ("bits", "group_size", "dtype", "target", "more"),
    [
        (4, 32, "float16", "nvidia-h100", {}),
        (8, 128, "float16", "nvidia-l4", {"has_residual": True}),
        (4, 64, "bfloat16", "nvidia-a100", {"has_bias": True}),
        (4, 128, "float16", "nvidia-a10", {"output_gate": "silu"}),
    ],
)
def test_kernels_spill_nothing_move_16_bytes_and_multiply_matrices(
    bits: int, group_size: int, dtype: str, target: str, more: dict[str, Any], tmp_path: Path
) -> None:
    spec = MatmulSpec(4096, 4096, bits, group_size, dtype, **more)
    kernels = compiled(spec, resolve(target), tmp_path)
    # Two for a few tokens, two and one for many that divide k, with a fourth that adds the parts after each.
    assert len([one for one in kernels if one.config]) == 5
    hold_the_gates(spec, kernels)


LINEARS = {
    "SmolLM2-135M": ((576, 960), (576, 576), (576, 3072), (1536, 576)),
    "Qwen2.5-0.5B": ((896, 1152), (896, 896), (896, 9728), (4864, 896)),
    "Llama-3.2-1B": ((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048)),
    "Llama-2-7B": ((4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096)),
    "Llama-3-8B": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["nvidia-a100", "nvidia-a10", "nvidia-l4", "nvidia-h100"])
@pytest.mark.parametrize("model", LINEARS)
def test_what_is_chosen_for_known_models_holds_the_gates(model: str, target: str, tmp_path: Path) -> None:
    group_size = 64 if model.startswith("SmolLM2") else 128
    for number, (k, n) in enumerate(LINEARS[model]):
        # Gate and up are the third.
        spec = MatmulSpec(k, n, 4, group_size, "float16", output_gate="silu" if number == 2 else None)
        hold_the_gates(spec, compiled(spec, resolve(target), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_what_a_tuner_may_choose_spills_nothing(part: int, tmp_path: Path) -> None:
    """The likeliest, and those with the most sums in registers, which are the nearest to spilling."""
    spec, target = MatmulSpec(4096, 4096, 4, 128, "float16"), resolve("nvidia-a100")
    ranges = RULE.space(spec, target)
    assert len(ranges) == 3
    configs = ranges[part].configs

    def sums(config: TensorCoreConfig) -> int:
        return max(4 * one.eights * one.tiles for one in (*config.few, *config.middle, config.many))

    for config in {*configs[:2], *sorted(configs, key=sums)[-3:]}:
        for one in compiled(spec, target, tmp_path, config):
            assert one.kernel.spill_store_bytes == one.kernel.spill_load_bytes == 0, config
            assert one.code.count("LDL", "STL") == 0, config


def test_portable_kernels_for_a_few_tokens_load_16_bytes_of_codes(tmp_path: Path) -> None:
    case = MatmulSpec(4096, 4096, 4, 128, "float16")
    path = tmp_path / "kernels.cu"
    path.write_text(build_for(CUDA_MATMUL, case, resolve("nvidia-a100")).source)
    _, (text,), _ = Nvcc.find().compile(path, (), "compute_80")
    parts = re.split(r"\.visible \.entry (\w+)\(", text.read_text())
    kernels = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert len(kernels) == 3
    for name in ("mm_kernel", "mm_kernel_1"):
        assert WIDE_LOAD.search(kernels[name]), name
        assert "mma.sync" not in kernels[name], name
