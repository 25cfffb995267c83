"""The page on GPU kernels states what its commands count today, of the linear that it begins with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.gpu import build, count_table, kernel_table, prediction
from benchmarks.gpu.machine_code import find_disassembler

PAGE = (Path(__file__).parents[2] / "docs" / "performance" / "gpu.md").read_text(encoding="utf-8")
SPEC, TARGET = MatmulSpec(4096, 4096, 4, 128, "float16"), resolve("nvidia-h100")


def stated(header: Sequence[str]) -> list[str]:
    """The rows of the page's table with this header."""
    _, rest = PAGE.split(f"| {' | '.join(header)} |\n", 1)
    return [line for line in rest.split("\n\n", 1)[0].splitlines() if not line.startswith("|---")]


@pytest.mark.slow
@pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed")
def test_counts_are_those_of_today(tmp_path: Path) -> None:
    version = re.search(r"nvcc (\d+\.\d+\.\d+)", PAGE)
    assert version is not None
    if shutil.which("nvcc") is None or build.nvcc_version() != version[1]:
        pytest.skip(f"the page's counts are of nvcc {version[1]}")
    assert kernel_table.kernel_table(SPEC, TARGET)[2:] == stated(kernel_table.HEADER)
    cases = build.build_cases(SPEC, TARGET, build.TOKENS, tmp_path)
    for table, header in ((count_table.table, count_table.HEADER), (prediction.table, prediction.HEADER)):
        of_shape = [row for row in stated(header) if row.startswith("| 4096x4096 |")]
        assert len(of_shape) > 5
        assert set(of_shape) <= set(table(cases))
