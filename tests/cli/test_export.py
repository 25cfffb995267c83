from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_tvm.checkpoint import QuantizationScheme, open_checkpoint
from awq_tvm.cli.main import run
from tests.checkpoint.test_gguf_write import quantized
from tests.checkpoint.tiny_models import save_gguf, tiny_config, tiny_weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = tiny_config()
    files = dict(open_checkpoint(save_gguf(tmp_path / "t.gguf", config, tiny_weights(config))).side_files)
    return quantized(tmp_path / "model", files, QuantizationScheme(4, 32)).path


def test_export_to_gguf_and_back_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.gguf"
    assert run(["export", str(model), "-o", str(out), "--format", "gguf-q4_1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "schema_version": 1,
        "out": str(out),
        "format": "gguf-q4_1",
        "bytes": out.stat().st_size,
        "seconds": found["seconds"],
    }
    assert open_checkpoint(out).tensors["model.layers.0.mlp.up_proj.weight"].stored_as == "Q4_1"
    assert run(["export", str(model), "-o", str(out), "--format", "gguf-q4_1"]) == 7  # it exists


def test_export_to_a_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(model), "-o", str(tmp_path / "b"), "--format", "compressed-tensors"]) == 0
    assert "compressed-tensors" in capsys.readouterr().out
    assert open_checkpoint(tmp_path / "b").format == "compressed-tensors"
    assert run(["export", str(model), "-o", str(tmp_path / "c"), "--format", "gptq"]) == 2
    assert "known: awq, llm-awq" in capsys.readouterr().err
