"""What the compiler makes of the CUDA kernels that are shipped: read from its PTX, kernel by kernel."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.schedules.cuda.matmul import CUDA_MATMUL
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import build_for

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")

ASYNC_16 = re.compile(r"cp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 16")
WIDE_LOAD = re.compile(r"ld\.global(?:\.nc)?(?:\.L\w+::\w+)*\.v4\.[bu]32")
MMA = re.compile(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32")


def ptx_of(rule, bits: int, group_size: int, folder: Path) -> dict[str, str]:
    """PTX by kernel, in the order of M."""
    case = MatmulSpec(4096, 4096, bits, group_size, "float16")
    source = build_for(rule, case, resolve("nvidia-a100")).source
    path = folder / "kernels.cu"
    path.write_text(source)
    _, (text,), _ = Nvcc.find().compile(path, (), "compute_80")
    parts = re.split(r"\.visible \.entry (\w+)\(", text.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 32), (8, 64)])
def test_tensor_core_kernels_copy_16_bytes_and_multiply_matrices(
    bits: int, group_size: int, tmp_path: Path
) -> None:
    kernels = ptx_of(TensorCoreRule(), bits, group_size, tmp_path)
    # Two for a few tokens, two that divide k with a third that adds the parts after each, one for many.
    assert len(kernels) == 7
    for name in ("mm_kernel_3", "mm_kernel_5"):
        assert not MMA.search(kernels.pop(name))
    for name, text in kernels.items():
        assert ASYNC_16.search(text), name
        assert MMA.search(text), name
        # Nothing of global memory is read but through those copies, and nothing converts codes one by one.
        assert "ld.global" not in text, name
        assert "cvt.rn.f32.u" not in text, name


def test_portable_kernels_for_a_few_tokens_load_16_bytes_of_codes(tmp_path: Path) -> None:
    kernels = ptx_of(CUDA_MATMUL, 4, 128, tmp_path)
    assert len(kernels) == 3
    for name in ("mm_kernel", "mm_kernel_1"):
        assert WIDE_LOAD.search(kernels[name]), name
        assert not MMA.search(kernels[name]), name
