"""What must hold of the machine code of every linear shipped for CUDA: no spills, wide copies, matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.toolchain.result import Kernel
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig, registers_for
from awq_tvm.schedules.cuda.cost import MOST_REGISTERS
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.rule import select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target
from benchmarks.gpu.count_table import blocks_of_sm
from benchmarks.gpu.machine_code import MachineCode, disassemble, read_listing
from tests.support.gpu_kernels import Built, build_for

LEAST_WARPS = 8
"""Of an SM: two for each of its four schedulers, so that one multiplies while another decodes."""

LINEARS = {
    "SmolLM2-135M": ((576, 960), (576, 576), (576, 3072), (1536, 576)),
    "Qwen2.5-0.5B": ((896, 1152), (896, 896), (896, 9728), (4864, 896)),
    "Llama-3.2-1B": ((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048)),
    "Llama-2-7B": ((4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096)),
    "Llama-3-8B": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)),
}
"""(K, N) of a layer's: q, k and v; o; gate and up; down."""


def shipped_linears(
    model: str, group_size: int | None = None, dtype: str = "float16"
) -> Iterator[MatmulSpec]:
    """A layer's linears as the passes leave them: those before a norm add the residual, gate and up gate their sums.

    Args:
        model: one of ``LINEARS``.
        group_size: 0 for one group a row; by default what the model is quantized in.
        dtype: of the activations.
    """
    if group_size is None:
        group_size = 64 if model.startswith("SmolLM2") else 128
    for number, (k, n) in enumerate(LINEARS[model]):
        yield MatmulSpec(
            k,
            n,
            4,
            group_size or k,
            dtype,
            has_bias=number == 0 and model.startswith("Qwen2."),
            has_residual=number in (1, 3),
            output_gate="silu" if number == 2 else None,
        )


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
    config: FewConfig | TiledConfig | WarpgroupConfig | None

    def blocks_of_sm(self, registers: int | None) -> int:
        """For how many of its blocks an SM has room, if a thread takes so many registers."""
        assert registers is not None
        usage = {"registers": registers, "shared_bytes": self.kernel.shared_bytes}
        return blocks_of_sm(self.kernel.arch, self.launch, usage)


@dataclass(frozen=True)
class HeardNvcc(Nvcc):
    """The compiler, and all that it has said."""

    said: list[str] = field(default_factory=list)

    def _run(self, source: Path, arch: str, output: Path, fast_math: bool) -> str:
        self.said.append(super()._run(source, arch, output, fast_math))
        return self.said[-1]


def compiled(
    spec: MatmulSpec, target: Target, folder: Path, config: TensorCoreConfig | HopperConfig | None = None
) -> list[Compiled]:
    """All kernels of a linear for every architecture that a target has code for, in the order of M."""
    chosen = select(spec, target)
    assert isinstance(chosen.rule, TensorCoreRule), chosen
    config = config or chosen.match.config
    built = build_for(chosen.rule, spec, target, config)
    source = folder / "kernels.cu"
    source.write_text(built.source)
    nvcc = HeardNvcc.find()
    _, cubins, reports = nvcc.compile(source, target.cuda_archs, None)
    # Where the assembler sees no other way, it waits for each product of a warpgroup and says so.
    assert not [said for said in nvcc.said if "serialized" in said]
    launches = _launches(built, config, {kernel.name for kernel in reports})
    found = []
    for arch, cubin in zip(target.cuda_archs, cubins, strict=True):
        listing = disassemble(cubin)
        assert listing is not None
        code = read_listing(listing)
        report = {kernel.name: kernel for kernel in reports if kernel.arch == arch}
        assert set(launches) == set(report) == set(code)
        found += [Compiled(report[name], code[name], *each) for name, each in launches.items()]
    return found


def _launches(
    built: Built, config: TensorCoreConfig | HopperConfig, names: set[str]
) -> dict[str, tuple[Launch, FewConfig | TiledConfig | WarpgroupConfig | None]]:
    """For each kernel by name its launch for the largest M, and its configuration if it multiplies."""
    ends = [(few.most_tokens, few) for few in config.few]
    ends += [(one.tokens, one) for one in config.middle] + [(1 << 14, config.many)]
    found = {}
    for m, one in ends:
        for number, launch in enumerate(built.launches(m)):
            found[launch.kernel] = (launch, None if number else one)
    # That for many tokens adds parts at some M and not at others, and at some its parts are clusters.
    for name in names - found.keys():
        launch = next(each for m in range(1, 1 << 14) for each in built.launches(m) if each.kernel == name)
        found[name] = (launch, config.many if launch.cluster > 1 else None)
    return found


def hold_the_gates(spec: MatmulSpec, kernels: list[Compiled]) -> None:
    """Assert of each kernel what must hold on every architecture."""
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
            assert one.code.count("HMMA", "HGMMA") == 0, where
            continue
        # Everything is copied 16 bytes at a time, and nothing else that is multiplied is read from global memory.
        copies = [name for name in one.code.instructions if name.startswith("LDGSTS")]
        assert copies, where
        assert all(name.endswith(".128") for name in copies), where
        # Where launches overlap, x of the first stages comes by plain loads behind the wait.
        assert not loads or spec.has_bias or spec.has_residual or one.code.count("ACQBULK"), where
        # And of other blocks of the cluster their sums.
        mapped = [name for name in one.code.instructions if name.startswith("LD.")]
        assert bool(mapped) == (one.launch.cluster > 1), where
        assert spec.out_features % 8 or all(".128" in name for name in mapped), where
        # Codes become numbers by their bits. Where a warp has few blocks of k there is no loop left.
        assert not [name for name in one.code.loop or one.code.instructions if name.startswith("I2F")], where
        blocks = one.blocks_of_sm(one.kernel.registers)
        assert blocks * one.launch.block[0] // 32 >= LEAST_WARPS, (blocks, *where)
        if isinstance(one.config, WarpgroupConfig):
            _multiplies_by_warpgroups(spec, one)
        else:
            _multiplies_by_warps(spec, one, one.config)


def _multiplies_by_warpgroups(spec: MatmulSpec, one: Compiled) -> None:
    products = [name for name in one.code.instructions if name.startswith("HGMMA")]
    assert products, one
    assert all(name.endswith(".BF16") == (spec.dtype == "bfloat16") for name in products), one
    assert one.code.count("HMMA") == 0, one


def _multiplies_by_warps(spec: MatmulSpec, one: Compiled, config: FewConfig | TiledConfig) -> None:
    code, where = one.code, (one.kernel, config)
    assert code.count("HMMA") > 0, where
    assert code.count("HGMMA") == 0, where
    sums = 4 * config.eights * config.tiles
    if isinstance(config, TiledConfig) and config.run_of(spec.group_size) > 1:
        # Scaled once for 128 k: of four matrix products and as many sums, twice.
        scaled, products = (sum(name.startswith(kind) for name in code.loop) for kind in ("FFMA", "HMMA"))
        assert products == 2 * scaled, where
        sums += sums // 2
    # As many blocks share an SM as the model takes for granted that prunes what a tuner can choose.
    thought = min(registers_for(sums), MOST_REGISTERS)
    assert one.blocks_of_sm(one.kernel.registers) >= one.blocks_of_sm(thought), where
