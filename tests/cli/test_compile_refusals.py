from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.cli.main import run
from tests.support.tiny_decoder import make_model, save_dense


def test_a_format_is_refused_before_the_model_is_quantized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_dense(make_model("llama"), tmp_path / "dense")
    command = ["compile", str(folder), "--target", "x86-64-v3", "-o", str(tmp_path / "b")]
    assert run([*command, "--dtype", "bfloat16"]) == 4
    assert "--dtype" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_cpu_has_no_host_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_dense(make_model("llama"), tmp_path / "dense")
    command = ["compile", str(folder), "--target", "x86-64-v3", "-o", str(tmp_path / "b")]
    assert run([*command, "--host-here"]) == 2
    assert "x86-64-v3 is a CPU" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
