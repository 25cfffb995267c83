from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_tvm.bundle import machine
from awq_tvm.bundle.manifest import TargetInfo
from awq_tvm.checkpoint import PER_CHANNEL, QuantizationScheme
from awq_tvm.cli.main import run
from tests.bundle.conftest import make_bundle
from tests.support.tiny_decoder import make_model, save_quantized


def _foreign(path: Path) -> Path:
    other = "aarch64" if machine.architecture() == "x86_64" else "x86_64"
    target = TargetInfo(name="other", kind="cpu", fingerprint="f", triple=f"{other}-unknown-linux-gnu")
    return make_bundle(path, target=target)


def test_inspect_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"schema_version", "target", "model", "recipe", "files", "tuning"} <= found.keys()
    assert found["model"]["name"] == "tiny"
    assert found["recipe"]["bits"] == 4
    assert found["files"]["model.so"]["size"] == (bundle / "model.so").stat().st_size
    assert found["tuning"]["kernels"][0]["source"] == "default"
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "weights.safetensors" in text
    assert "no record" in text


def test_inspect_shows_what_the_compiler_said_of_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use = {"registers": 62, "spill_store_bytes": 0, "spill_load_bytes": 0, "shared_bytes": 2048}
    said = [{"name": "matmul", "arch": arch, **use} for arch in ("sm_80", "sm_90")]
    said[1]["registers"] = 80
    bundle = make_bundle(tmp_path / "b", report=json.dumps(said).encode())
    assert run(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == said
    assert run(["inspect", str(bundle)]) == 0
    assert "matmul  80 registers, 0 bytes spilled, 2.0 kB of static shared memory" in capsys.readouterr().out
    size = (bundle / "kernels.json").stat().st_size
    (bundle / "kernels.json").write_bytes(b" " * size)
    assert run(["inspect", str(bundle)]) == 6
    assert "kernels.json" in capsys.readouterr().err


def test_inspect_bundle_for_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(_foreign(tmp_path / "b"))]) == 0
    assert "other" in capsys.readouterr().out


def test_inspect_damaged_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "model.so").unlink()
    assert run(["inspect", str(bundle)]) == 6
    assert "missing: model.so" in capsys.readouterr().err


def test_inspect_a_checkpoint_of_several_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exceptions = {"model.layers.1.mlp.up_proj": QuantizationScheme(8, PER_CHANNEL)}
    folder = save_quantized(make_model("llama"), tmp_path / "q", bits=3, exceptions=exceptions)
    assert run(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quantized_linears_by_bits"] == {"3 bits": 13, "8 bits": 1}
    assert run(["inspect", str(folder)]) == 0
    assert "3 bits  13" in capsys.readouterr().out


def test_inspect_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "nowhere")]) in (2, 3)
    assert "nowhere" in capsys.readouterr().err


def test_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(bundle)]) == 0
    assert "good" in capsys.readouterr().out
    assert run(["verify", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["files"] == 5
    assert found["target_checked"] is True


def test_verify_damaged(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray((bundle / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(raw)
    assert run(["verify", str(bundle), "--json"]) == 6
    assert "weights.safetensors" in json.loads(capsys.readouterr().out)["error"]["where"]


def test_verify_for_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _foreign(tmp_path / "b")
    assert run(["verify", str(path)]) == 5
    assert "python -m awq_tvm compile" in capsys.readouterr().err
    assert run(["verify", str(path), "--any-target"]) == 0
    assert "not asked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", [["generate", "--prompt", "x"], ["chat"], ["bench"], ["eval", "--text", "t"]]
)
def test_verbs_that_load_refuse_a_damaged_bundle_first(
    verb: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "model.so").write_bytes(b"\x7fELF not really" * 98 + b"\x7fELF not Really")
    assert run([verb[0], str(bundle), *verb[1:]]) == 6
    assert "model.so" in capsys.readouterr().err
