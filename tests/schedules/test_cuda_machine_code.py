"""What the compiler makes of the CUDA kernels that are shipped: from its report and from the machine code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.schedules.cuda.config import TensorCoreConfig
from awq_tvm.schedules.cuda.division import division_of
from awq_tvm.schedules.cuda.hopper_config import WarpgroupConfig, default_hopper_config
from awq_tvm.schedules.cuda.matmul import CUDA_MATMUL
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.gpu.machine_code import find_disassembler
from tests.support.cuda_gates import LINEARS, compiled, hold_the_gates, shipped_linears
from tests.support.gpu_kernels import build_for

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
    pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed"),
]

RULE = TensorCoreRule()
WIDE_LOAD = re.compile(r"ld\.global(?:\.nc)?(?:\.L\w+::\w+)*\.v4\.[bu]32")


@pytest.mark.parametrize(
    ("bits", "group_size", "dtype", "target", "more"),
    [
        (4, 32, "float16", "nvidia-h100", {}),
        (8, 128, "float16", "nvidia-l4", {"has_residual": True}),
        (4, 64, "bfloat16", "nvidia-a100", {"has_bias": True}),
        (4, 128, "float16", "nvidia-a10", {"output_gate": "silu"}),
        (4, 128, "float16", "nvidia-h100", {"output_gate": "silu"}),
    ],
)
def test_kernels_spill_nothing_move_16_bytes_and_multiply_matrices(
    bits: int, group_size: int, dtype: str, target: str, more: dict[str, Any], tmp_path: Path
) -> None:
    spec = MatmulSpec(4096, 4096, bits, group_size, dtype, **more)
    kernels = compiled(spec, resolve(target), tmp_path)
    # Up to 8 tokens, 16, 32, 64, and more; on Hopper one up to 128 too, and one for more whose parts are clusters.
    assert len([one for one in kernels if one.config]) == (7 if target == "nvidia-h100" else 5)
    hold_the_gates(spec, kernels)


TARGETS = ("cuda", "jetson-agx-orin", "nvidia-a100", "nvidia-a10", "nvidia-l4", "nvidia-h100", "nvidia-b200")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", LINEARS)
def test_what_is_chosen_for_known_models_holds_the_gates(model: str, target: str, tmp_path: Path) -> None:
    for spec in shipped_linears(model):
        hold_the_gates(spec, compiled(spec, resolve(target), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("group_size", [32, 64, 128, 0])
def test_other_groups_and_bfloat16_hold_the_gates_on_hopper(
    group_size: int, dtype: str, tmp_path: Path
) -> None:
    for spec in shipped_linears("Llama-3-8B", group_size, dtype):
        kernels = compiled(spec, resolve("nvidia-h100"), tmp_path)
        config = default_hopper_config(spec, 132, resolve("nvidia-h100").shared_memory_bytes, clusters=True)
        clusters = any(division_of(spec, config, config.many, m).clustered for m in range(129, 1 << 11))
        # For 65 tokens to 128, for more, and where tiles are few for more in clusters.
        by_warpgroups = [one for one in kernels if isinstance(one.config, WarpgroupConfig)]
        assert len(by_warpgroups) == (3 if clusters else 2)
        hold_the_gates(spec, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("target", ["cuda", "nvidia-h100"])
@pytest.mark.parametrize(("k", "n", "group_size"), [(576, 49152, 64), (4096, 128256, 128)])
def test_heads_of_8_bits_hold_the_gates(
    k: int, n: int, group_size: int, target: str, dtype: str, tmp_path: Path
) -> None:
    spec = MatmulSpec(k, n, 8, group_size, dtype)
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
