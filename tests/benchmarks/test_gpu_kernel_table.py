"""The table of a linear's kernels and of what is in their machine code."""

from __future__ import annotations

import shutil

import pytest

from awq_tvm.errors import TargetError, UnsupportedError
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.gpu import kernel_table
from benchmarks.gpu.machine_code import find_disassembler

SPEC = MatmulSpec(256, 256, 4, 64, "float16")

needs_tools = pytest.mark.skipif(
    shutil.which("nvcc") is None or find_disassembler() is None, reason="nvcc or nvdisasm is not installed"
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@needs_tools
@pytest.mark.parametrize(
    ("target", "by"),
    [
        ("nvidia-a10", {"8": "mma", "16": "mma", "32": "mma", "64": "mma", "more": "mma"}),
        pytest.param("nvidia-h100", {"128": "wgmma", "more": "mma"}, marks=pytest.mark.slow),
    ],
)
def test_every_kernel_has_a_row(target: str, by: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_table.main(["4096x256", "--target", target, "--group-size", "64"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "No time was measured" in said[0]
    header, _, *rows = map(cells, said[2:])
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows if row[0]}
    assert {m: table[m]["by"] for m in by} == by
    for row in table.values():
        assert row["bytes spilled"] == "0"
        if row["all instructions of it"]:  # parts of few blocks of k have no loop
            assert int(row["all instructions of it"]) > int(row["matrix instructions of a round"]) > 0
        assert 0 < int(row["registers"]) < 256
    assert table["8"]["all instructions of it"]
    assert table["more"]["all instructions of it"]
    assert table["8"]["outputs x tokens of a block"] == "16 x 8"


def test_what_has_no_table_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_disassembler():
        with pytest.raises(UnsupportedError, match="do not serve"):
            kernel_table.kernel_table(MatmulSpec(96, 64, 4, 32, "float16"), resolve("nvidia-a10"))
    monkeypatch.setattr(kernel_table, "find_disassembler", lambda: None)
    with pytest.raises(TargetError, match="cannot be read"):
        kernel_table.kernel_table(SPEC, resolve("nvidia-a10"))
    assert kernel_table.main(["256x256"]) == TargetError.exit_code
    assert "nvdisasm" in capsys.readouterr().err
