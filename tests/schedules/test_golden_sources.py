"""The generated source of a few small kernels, word for word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tvm.target import Target

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.schedules.attention.gpu.config import DecodeConfig
from awq_tvm.schedules.attention.gpu.decode import decode_paged
from awq_tvm.schedules.attention.gpu.simdgroup_prefill import simdgroup_prefill_paged
from awq_tvm.schedules.attention.gpu.simdgroup_prefill_config import SimdgroupPrefillConfig
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.rule import rules_for
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.golden import compare
from tests.support.gpu_kernels import build_for

SMALL = MatmulSpec(64, 16, 4, 32, "float16")
KERNEL = re.compile(r'^(?:extern "C" __global__ void|kernel void)[^;{]*\{', re.M)
COUNTED = re.compile(r"\bcse_v\d+\b")

CASES = {
    # By rule: the kernel of a single token, and one whose tokens share tiles.
    "cuda_simt.cu": ("cuda", False, 0),
    "cuda_simt_tiled.cu": ("cuda", False, 2),
    "cuda_tensor_core.cu": ("cuda", True, 0),
    "metal_simd.metal": ("metal", False, 0),
    "metal_simd_tiled.metal": ("metal", False, 2),
}


def source_of(target: str, tensor_core: bool, index: int) -> str:
    """One kernel of the small linear."""
    chip = resolve(target)
    rule = TensorCoreRule() if tensor_core else rules_for(chip)[-1]
    return one_kernel(build_for(rule, SMALL, chip).source, index)


def one_kernel(source: str, index: int) -> str:
    """One kernel of a source, without what TVM writes before all of them."""
    starts = [match.start() for match in KERNEL.finditer(source)]
    kernel = source[starts[index] : [*starts[1:], len(source)][index]]
    # TVM counts such names on from kernel to kernel: what changes in one must not show in another.
    names = list(dict.fromkeys(COUNTED.findall(kernel)))
    kernel = COUNTED.sub(lambda match: f"cse_v{names.index(match[0]) + 1}", kernel)
    return "\n".join(line.rstrip() for line in kernel.strip().splitlines()) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_generated_source_is_what_was_reviewed(name: str, golden: Callable[[str, str], None]) -> None:
    golden(name, source_of(*CASES[name]))


ATTENTION = AttentionShape(2, 1, 16, "float16")
ATTENTION_SIZES = DecodeConfig(lanes=2, pieces=1, heads=2, head_warps=1, key_warps=2, unroll=1, blocks=4)


@pytest.mark.parametrize(("index", "name"), [(0, "decode"), (1, "merge")])
def test_attention_is_what_was_reviewed(index: int, name: str, golden: Callable[[str, str], None]) -> None:
    chip = resolve("metal")
    func = decode_paged(ATTENTION, Target(chip.tvm_target_with_host), ATTENTION_SIZES)
    source = HostPart(func.with_attr("global_symbol", "attend"), chip).source
    golden(f"metal_attention_{name}.metal", one_kernel(source, index))


def test_prefill_is_what_was_reviewed(golden: Callable[[str, str], None]) -> None:
    shape = AttentionShape(2, 1, 8, "float16", sliding_window=20)
    func = simdgroup_prefill_paged(shape, SimdgroupPrefillConfig(2, 1, 16, True))
    source = HostPart(func.with_attr("global_symbol", "attend"), resolve("metal")).source
    golden("metal_attention_prefill.metal", one_kernel(source, 0))


def test_a_difference_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cu"
    with pytest.raises(
        pytest.fail.Exception, match="not in tests/golden: run this test with --update-golden"
    ):
        compare(path, "a\n", update=False)
    compare(path, "a\nb\n", update=True)
    compare(path, "a\nb\n", update=False)
    with pytest.raises(pytest.fail.Exception) as error:
        compare(path, "a\nc\n", update=False)
    assert "-b\n+c\n" in str(error.value)
    with pytest.raises(pytest.fail.Exception, match="more lines"):
        compare(path, "c\n" * 100, update=False)
    assert path.read_text() == "a\nb\n"
