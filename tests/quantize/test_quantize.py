"""From a model folder to a quantized one: the files hold what was computed, and no run is ever half done."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import AwqTvmError, CheckpointError, ResourceError, UnsupportedError, UsageError
from awq_tvm.progress import ProgressEvent
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.report import QuantizeReport
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import FAMILIES, save_tiny_model, write_text

SMALL = {"method": "awq", "samples": 3, "sequence_length": 32}


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def _run(tmp_path: Path, name: str = "q", **arguments) -> QuantizeReport:
    text = (
        write_text(tmp_path / "text.txt") if not (tmp_path / "text.txt").exists() else tmp_path / "text.txt"
    )
    settings = {"calibration": str(text), **SMALL, **arguments}
    return quantize_checkpoint(str(tmp_path / "model"), tmp_path / name, **settings)


# How far logits of a random model may be off, relative; scales that were folded wrongly give about 1.4.
LOGIT_ERROR = {3: 1.2, 4: 0.8, 8: 0.1}


@pytest.mark.parametrize(
    ("family", "method", "bits"),
    [
        *((family, "awq", 4) for family in FAMILIES),
        ("qwen2", "awq", 8),
        ("qwen3", "awq", 8),
        ("llama", "awq", 8),
        ("llama", "awq", 3),
        ("llama", "rtn", 4),
        ("mistral", "rtn", 3),
    ],
)
def test_the_folder_holds_the_model_that_was_computed(tmp_path, family, method, bits):
    """Read back: linears are on their grid, logits near the original's, blocks better than by rounding."""
    original = save_tiny_model(tmp_path / "model", family, num_hidden_layers=3)
    report = _run(tmp_path, method=method, bits=bits)
    written = open_checkpoint(str(tmp_path / "q"))
    assert written.scheme is not None
    assert (written.scheme.bits, written.scheme.group_size) == (bits, 64)
    assert len(written.quantized) == 3 * 7
    assert {info.dtype for info in written.tensors.values()} == {"float16"}
    model = build_model(written)
    for name in written.quantized:
        weight = written.read_quantized(name)
        np.testing.assert_array_equal(model.get_submodule(name).weight.numpy(), weight.dequantize())
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        wanted, found = original(ids).logits, model(ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < LOGIT_ERROR[bits]
    assert not (tmp_path / "q.journal").exists()
    assert report.bytes_after < report.bytes_before
    assert report.bytes_after == (tmp_path / "q" / "model.safetensors").stat().st_size
    if method == "awq":
        assert all(block.loss_after < block.loss_before for block in report.blocks)
        assert report.calibration_tokens == 96
        assert report.calibration_sha256 in (tmp_path / "q" / "README.md").read_text()
    else:
        assert report.calibration_sha256 is None
        assert [block.loss_after for block in report.blocks] == [None] * 3


def test_rtn_is_rounding_of_each_weight(tmp_path):
    original = save_tiny_model(tmp_path / "model")
    _run(tmp_path, method="rtn", group_size=32)
    written = open_checkpoint(str(tmp_path / "q"))
    for name in written.quantized:
        weight = original.get_submodule(name).weight.detach().numpy()
        quantized = written.read_quantized(name)
        step = quantized.scales.astype(np.float32).repeat(32, axis=1)
        assert (np.abs(quantized.dequantize() - weight) <= step).all()
    norm = original.model.norm.weight.detach().numpy()
    np.testing.assert_array_equal(written.read("model.norm.weight"), norm.astype(np.float16))


def test_symmetric_models_store_no_zero_points(tmp_path):
    save_tiny_model(tmp_path / "model")
    report = _run(tmp_path, symmetric=True)
    written = open_checkpoint(str(tmp_path / "q"))
    assert written.scheme is not None
    assert (written.scheme.bits, written.scheme.zero_point) == (4, False)
    assert not [name for name in load_file(tmp_path / "q" / "model.safetensors") if "zero" in name]
    for name in written.quantized:
        assert (written.read_quantized(name).zeros == 8).all()
    assert all(block.loss_after < block.loss_before for block in report.blocks)
    assert "4, symmetric, groups of 64" in (tmp_path / "q" / "README.md").read_text()


def test_tied_head_is_written_once(tmp_path):
    save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    _run(tmp_path)
    written = open_checkpoint(str(tmp_path / "q"))
    assert "lm_head.weight" not in written.tensors
    assert build_model(written).lm_head.weight.abs().max() > 0
    assert written.side_files["tokenizer.json"] == (tmp_path / "model" / "tokenizer.json").read_bytes()


def test_same_arguments_give_same_bytes_and_another_seed_others(tmp_path):
    save_tiny_model(tmp_path / "model")
    first, second = _run(tmp_path, "a"), _run(tmp_path, "b")
    other = _run(tmp_path, "c", seed=1)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert first.calibration_sha256 == second.calibration_sha256 != other.calibration_sha256


def test_the_default_needs_no_file(tmp_path):
    save_tiny_model(tmp_path / "model")
    report = _run(tmp_path, calibration="default")
    assert report.calibration_source == "the model itself, temperature 1"
    topics = _run(tmp_path, "topics", calibration="topics")
    assert topics.calibration_source == "the help topics that come with Python"
    assert topics.calibration_sha256 != report.calibration_sha256


def test_progress_names_every_block(tmp_path):
    save_tiny_model(tmp_path / "model")
    events: list[ProgressEvent] = []
    _run(tmp_path, progress=events.append)
    assert [(event.done, event.total) for event in events if event.stage == "block"] == [(1, 2), (2, 2)]
    assert [event.done for event in events if event.stage == "write"] == [0, 1]


REFUSED = {
    "method": ({"method": "gptq"}, UsageError, r"awq, awq\+, rtn"),
    "bits": ({"bits": 9}, UsageError, "2, 3, 4, 5, 6, 7, 8"),
    "group of 0": ({"group_size": 0}, UsageError, "32, 64, 128"),
    "group that does not divide": ({"group_size": 128}, UsageError, "fit all linears: 64, 32"),
    "no samples": ({"samples": 0}, UsageError, "at least 1"),
    "no tokens": ({"sequence_length": 1}, UsageError, "at least 1"),
    "text that is not there": ({"calibration": "nowhere.txt"}, UsageError, "no such calibration"),
    "text that is too short": ({"sequence_length": 5000}, UsageError, "too short"),
    "no package for data sets": ({"calibration": "hf:some/thing"}, ResourceError, "datasets"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(tmp_path, monkeypatch, case):
    arguments, error, message = REFUSED[case]
    monkeypatch.setitem(sys.modules, "datasets", None)
    save_tiny_model(tmp_path / "model")
    write_text(tmp_path / "text.txt")
    before = _hashes(tmp_path / "model")
    with pytest.raises(error, match=message):
        _run(tmp_path, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]
    assert _hashes(tmp_path / "model") == before
    assert _run(tmp_path).bytes_after > 0


def test_output_that_exists_is_refused_untouched(tmp_path):
    save_tiny_model(tmp_path / "model")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine").write_text("keep")
    with pytest.raises(ResourceError, match="exists already"):
        _run(tmp_path)
    assert (tmp_path / "q" / "mine").read_text() == "keep"


def test_a_quantized_model_is_not_quantized_again(tmp_path):
    save_tiny_model(tmp_path / "model")
    _run(tmp_path)
    with pytest.raises(UnsupportedError, match="already"):
        quantize_checkpoint(str(tmp_path / "q"), tmp_path / "again", method="rtn")


def test_rows_that_the_format_cannot_pack_are_refused(tmp_path):
    save_tiny_model(
        tmp_path / "model",
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=12,
        intermediate_size=96,
    )
    with pytest.raises(UsageError):
        _run(tmp_path)
    assert not (tmp_path / "q.journal").exists()


def test_token_outside_the_vocabulary(tmp_path):
    save_tiny_model(tmp_path / "model", vocab_size=100)
    with pytest.raises(CheckpointError, match="vocabulary has 100"):
        _run(tmp_path)
    assert not (tmp_path / "q.journal").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from awq_tvm.quantize.quantize import quantize_checkpoint
folder, after = Path(sys.argv[1]), int(sys.argv[2])

def progress(event):
    print(event.stage, event.done, flush=True)
    if event.stage == "block" and event.done == after:
        os.kill(os.getpid(), signal.SIGKILL)

quantize_checkpoint(str(folder / "model"), folder / "q", method="awq",
                    calibration=str(folder / "text.txt"), samples=3,
                    sequence_length=32, resume="resume" in sys.argv, progress=progress)
"""


def _subprocess(folder: Path, after: int, *more: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(after), *more],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_resume_after_kill_is_bit_identical(tmp_path):
    """Killed with SIGKILL after one block, then again after another, then left to finish."""
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    write_text(tmp_path / "text.txt")
    whole = _subprocess(tmp_path, -1)
    assert _finish(whole)[0] == 0
    expected = _hashes(tmp_path / "q")
    (tmp_path / "q").rename(tmp_path / "whole")

    assert _finish(_subprocess(tmp_path, 1))[0] == -signal.SIGKILL
    assert not (tmp_path / "q").exists()
    with pytest.raises(UsageError, match="--resume"):
        _run(tmp_path)
    code, events = _finish(_subprocess(tmp_path, 2, "resume"))
    assert code == -signal.SIGKILL
    assert "block 1" not in events
    code, events = _finish(_subprocess(tmp_path, -1, "resume"))
    assert code == 0
    assert "block 2" not in events
    assert "block 3" in events
    assert _hashes(tmp_path / "q") == expected
    assert not (tmp_path / "q.journal").exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads here as in the runs that are killed: a run is resumed with as many only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.usefixtures("one_thread")
def test_two_runs_on_one_output(tmp_path):
    """The second is refused while the first lives, and may go on once it is dead."""
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    write_text(tmp_path / "text.txt")
    first = _subprocess(tmp_path, -1)
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("block 1"):
                first.send_signal(signal.SIGSTOP)
                break
        with pytest.raises(ResourceError, match=f"process {first.pid}"):
            _run(tmp_path, resume=True)
    finally:
        first.kill()
        first.wait()
        assert first.stdout is not None
        first.stdout.close()
        assert first.stderr is not None
        first.stderr.close()
    assert _run(tmp_path, resume=True).bytes_after > 0


def test_resume_with_other_settings_is_refused(tmp_path):
    save_tiny_model(tmp_path / "model")

    class StopError(Exception):
        pass

    def stop(event: ProgressEvent) -> None:
        if event.stage == "block":
            raise StopError

    with pytest.raises(StopError):
        _run(tmp_path, progress=stop)
    with pytest.raises(UsageError, match="bits: then 4, now 3"):
        _run(tmp_path, bits=3, resume=True)
    with pytest.raises(UsageError, match="seed: then 0, now 1"):
        _run(tmp_path, seed=1, resume=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(UsageError, match=f"threads: then {threads}"):
            _run(tmp_path, resume=True)
    finally:
        torch.set_num_threads(threads)
    time.sleep(0.01)
    save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match="model: then"):
        _run(tmp_path, resume=True)


def test_the_text_is_not_made_twice(tmp_path, monkeypatch):
    """Neither the model's own, which takes minutes, nor one that was changed or lost meanwhile."""
    save_tiny_model(tmp_path / "model")
    _run(tmp_path, calibration="self")
    expected = _hashes(tmp_path / "q")
    (tmp_path / "q").rename(tmp_path / "whole")

    def stop(event: ProgressEvent) -> None:
        if event.stage == "calibrate" and event.done == event.total and "from" in event.message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, calibration="self", progress=stop)
    monkeypatch.setattr("awq_tvm.quantize.calibration.sample_from_model", None)
    _run(tmp_path, calibration="self", resume=True)
    assert _hashes(tmp_path / "q") == expected


def test_files_are_laid_out_as_autoawq_does(tmp_path):
    """Names, shapes and types are those of AutoAWQ; packing has its tests in the checkpoint package."""
    save_tiny_model(tmp_path / "model")
    _run(tmp_path)
    config = open_checkpoint(str(tmp_path / "q")).config
    assert config["model_type"] == "llama"
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.qweight"].shape == (64, 16)
    assert tensors["model.layers.0.mlp.up_proj.scales"].dtype == np.float16


def test_weight_that_is_not_finite(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(AwqTvmError, match=r"layers\.1\.mlp\.up_proj"):
        _run(tmp_path)
    assert not (tmp_path / "q").exists()
