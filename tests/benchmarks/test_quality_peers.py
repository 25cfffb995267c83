"""Side by side with other quantizers: what goes through their interface is scored as it is, and failures are rows."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from awq_tvm.quantize.group_quantize import Rounding, quantize
from benchmarks import quality, quality_peers
from tests.quantize.tiny_models import save_tiny_model, write_text

BENCHMARKS = Path(quality_peers.__file__).parent


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def texts(tmp_path):
    save_tiny_model(tmp_path / "model")
    return ["--model", tmp_path / "model", "--text", write_text(tmp_path / "text.txt", 600)]


def _run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return module.main()


CALIBRATION = ("--samples", 2, "--sequence-length", 32)


@pytest.fixture
def prepared(tmp_path, texts, monkeypatch):
    from peers import prepare

    (tmp_path / "work").mkdir()
    calibration = ["--calibration", tmp_path / "text.txt", *CALIBRATION, "--seed", 0, "--tokens", 200]
    assert _run(monkeypatch, prepare, *texts, *calibration, "--out", tmp_path / "work") == 0
    return tmp_path / "work"


def _quantized_by_us(prepared, monkeypatch, recipe, bits=4):
    from peers import ours

    files = ["--model", prepared / "float", "--tokens", prepared / "calibration.npy"]
    settings = ["--bits", bits, "--group-size", 64, "--linears", prepared / "linears.json"]
    out = prepared / f"{recipe}.safetensors"
    calibration = ["--recipe", recipe, "--calibration", prepared.parent / "text.txt"]
    _run(monkeypatch, ours, *calibration, *files, *settings, "--out", out)
    return out


def _scored(prepared, monkeypatch, capsys, *arguments):
    from peers import score

    capsys.readouterr()
    options = ["--folder", prepared, "--bits", 4, "--group-size", 64, "--context", 50]
    code = _run(monkeypatch, score, *options, *arguments)
    said = capsys.readouterr()
    return json.loads(said.out) if code == 0 else said.err


def test_our_rows_are_those_of_the_other_benchmark(prepared, texts, monkeypatch, capsys, tmp_path):
    """Through files, the float model and dequantized weights, to the same figures as straight from the checkpoint."""
    found = [_scored(prepared, monkeypatch, capsys)]
    for recipe in ("rtn", "awq"):
        weights = _quantized_by_us(prepared, monkeypatch, recipe)
        found.append(_scored(prepared, monkeypatch, capsys, "--weights", weights))
    settings = ["--calibration", tmp_path / "text.txt", *CALIBRATION, "--tokens", 200, "--context", 50]
    settings += ["--bits", 4, "--group-size", 64, "--recipes", "rtn,awq", "--json"]
    capsys.readouterr()
    assert quality.main([str(argument) for argument in (*texts, *settings)]) == 0
    for row, figures in zip(json.loads(capsys.readouterr().out)["rows"], found, strict=True):
        assert {name: row[name] for name in figures} == figures


def test_calibration_that_differs_is_noticed(prepared, monkeypatch):
    np.save(prepared / "calibration.npy", np.load(prepared / "calibration.npy")[::-1])
    with pytest.raises(SystemExit, match="not those that the peers get"):
        _quantized_by_us(prepared, monkeypatch, "awq")


def test_a_short_calibration_text_is_refused(tmp_path, texts, monkeypatch, capsys):
    from peers import prepare

    wanted = ["--samples", 1000, "--sequence-length", 32, "--seed", 0, "--tokens", 200]
    assert (
        _run(monkeypatch, prepare, *texts, "--calibration", tmp_path / "text.txt", *wanted, "--out", tmp_path)
        == 2
    )
    assert "too short" in capsys.readouterr().err
    assert _run(monkeypatch, prepare, *texts, "--calibration", "nowhere", *wanted, "--out", tmp_path) == 2
    assert "no such calibration" in capsys.readouterr().err


def _lose_a_linear(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def _add_a_value(weights):
    weights["model.layers.0.mlp.up_proj.weight"][3, :17] = torch.arange(17.0)
    weights["model.layers.0.mlp.up_proj.weight"][3, 17:] = 0


def _break_a_norm(weights):
    weights["model.norm.weight"][0] = float("nan")


def _rename(weights):
    weights["model.layers.9.norm.weight"] = weights["model.norm.weight"].clone()


def _cut(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"][:3].clone()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_lose_a_linear, "1 linears are missing, the first is model.layers.1.mlp.up_proj"),
        (_add_a_value, "a group of model.layers.0.mlp.up_proj.weight has 17 values, 4 bits are 16"),
        (_break_a_norm, "model.norm.weight is not finite"),
        (_rename, "model.layers.9.norm.weight [64] is not a parameter"),
        (_cut, "model.norm.weight [3] is not a parameter"),
    ],
)
def test_weights_that_are_not_what_was_asked_for(prepared, monkeypatch, capsys, spoil, said):
    file = _quantized_by_us(prepared, monkeypatch, "rtn")
    weights = load_file(file)
    spoil(weights)
    save_file(weights, file)
    assert said in _scored(prepared, monkeypatch, capsys, "--weights", file)


def test_snap_finds_the_grid():
    from peers.interface import snap

    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, Rounding(4, 32))
    assert torch.equal(snap(weight, quantized.scales, quantized.zeros, 4), quantized.dequantize())
    assert torch.equal(
        snap(quantized.dequantize(), quantized.scales, quantized.zeros, 4), quantized.dequantize()
    )


def _options(folder, **more):
    return argparse.Namespace(
        work=folder, threads=1, timeout=60, environments=folder / "environments", **more
    )


def test_a_process_is_measured_by_itself(tmp_path):
    """Half a second of work in a child of 100 MB, and what it did not do itself is not in it."""
    work = "import time\nx = bytes(10**8)\nwhile time.process_time() < 0.5: pass\nprint('done')"
    big = quality_peers.run([sys.executable, "-c", work], _options(tmp_path))
    small = quality_peers.run([sys.executable, "-c", "print('done')"], _options(tmp_path))
    assert (big.output, small.output) == ("done\n", "done\n")
    assert 0.5 <= big.cpu_seconds < 5
    assert big.peak_mib >= 95
    assert small.cpu_seconds < big.cpu_seconds


def test_what_fails_says_so(tmp_path):
    with pytest.raises(quality_peers.FailedError, match=r"^out of luck$"):
        quality_peers.run([sys.executable, "-c", "raise SystemExit('out of luck')"], _options(tmp_path))
    command = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(quality_peers.FailedError, match="ended with -9"):
        quality_peers.run([sys.executable, "-c", command], _options(tmp_path))
    options = _options(tmp_path)
    options.timeout, started = 0.3, time.monotonic()
    with pytest.raises(quality_peers.FailedError, match=r"stopped after 0\.3 s"):
        quality_peers.run([sys.executable, "-c", "import time; time.sleep(60)"], options)
    assert time.monotonic() - started < 30


def test_unknown_names(texts, capsys):
    arguments = [*map(str, texts), "--calibration", "topics"]
    with pytest.raises(SystemExit):
        quality_peers.main([*arguments, "--peers", "hqq,best"])
    assert "unknown 'best'; known are autoround" in capsys.readouterr().err


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed(tmp_path):
    peer = quality_peers.Peer("none", ("./there-is-no-such-package",))
    with pytest.raises(quality_peers.FailedError, match="there-is-no-such-package"):
        quality_peers.environment(_options(tmp_path), peer)


# Stands where an environment's Python does: as a peer that rounds to nearest, or one that fails.
STAND_IN = """\
#!{python}
import sys
sys.path[:0] = [{benchmarks!r}, {root!r}]
from pathlib import Path
with Path({runs!r}).open("a") as runs:
    runs.write(sys.argv[2] + "\\n")
if sys.argv[2] != "peers.hqq":
    sys.exit("this peer fails")
del sys.argv[1:3]
import argparse
from awq_tvm.quantize.group_quantize import Rounding, round_trip
from peers.interface import read_job
parser = argparse.ArgumentParser()
parser.add_argument("--hqq-zeros")
job = read_job(parser)
model = job.load_model()
job.write({{f"{{name}}.weight": round_trip(model.get_submodule(name).weight.detach(),
           Rounding(job.bits, job.group_size)) for name in job.linears}})
"""


@pytest.mark.slow
def test_the_whole_with_a_peer_that_rounds(texts, tmp_path, capsys):
    """Its row is our row; the peer that fails is one too; what is there already is not done again."""
    for peer in ("hqq", "gptq"):
        known = quality_peers.PEERS[peer]
        folder = tmp_path / "environments" / known.module
        (folder / "bin").mkdir(parents=True)
        paths = {"python": sys.executable, "runs": str(tmp_path / "runs")}
        folders = {"benchmarks": str(BENCHMARKS), "root": str(BENCHMARKS.parent)}
        (folder / "bin" / "python").write_text(textwrap.dedent(STAND_IN).format(**paths, **folders))
        (folder / "bin" / "python").chmod(0o755)
        (folder / "requirements.txt").write_text("\n".join(known.requirements))
    arguments = [
        *texts,
        "--calibration",
        tmp_path / "text.txt",
        *CALIBRATION,
        "--tokens",
        200,
        "--context",
        50,
    ]
    arguments += ["--environments", tmp_path / "environments", "--work", tmp_path / "work"]
    arguments += ["--ours", "rtn,paper", "--json", "--peers"]
    assert quality_peers.main([*map(str, arguments), "hqq,gptq"]) == 1
    rows = {row["tool"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == ["full precision", "paper", "rtn", "hqq", "gptq"]
    assert "failed" not in rows["hqq"], rows["hqq"]
    for figure in ("perplexity", "kl_divergence", "top1_agreement", "kl_ratio"):
        assert rows["hqq"][figure] == rows["rtn"][figure] != rows["paper"][figure]
    assert rows["paper"]["kl_ratio"] == 1
    assert rows["gptq"]["failed"] == "this peer fails"
    assert rows["hqq"]["peak_mib"] > 100
    assert rows["hqq"]["cpu_seconds"] > 0

    assert quality_peers.main([*map(str, arguments), "hqq"]) == 0
    again = json.loads(capsys.readouterr().out)["rows"]
    assert again == [rows[row["tool"]] for row in again]
    assert (tmp_path / "runs").read_text().split() == ["peers.hqq", "peers.llm_compressor"]


def test_table():
    row = {"tool": "rtn", "perplexity": 30.0, "kl_divergence": 0.25, "cpu_seconds": 4, "peak_mib": 300}
    assert quality_peers.format_row(row) == "| rtn | 30.000 | 0.2500 |  |  | 4 | 300 |"
    assert quality_peers.format_row({"tool": "x", "failed": "no"}).count("|") == 8
