"""The verb itself, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awq_tvm.cli.main import run
from awq_tvm.compile.tuning.record_file import read_records
from awq_tvm.targets import detect

from .conftest import ROOT, awq_tvm


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_a_shape_is_tuned_and_not_a_second_time(tmp_path: Path) -> None:
    first = awq_tvm("tune", "64x48", "--group-size", 32, "--trials", 1, "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    file = tmp_path / "data" / "awq_tvm" / "tuned" / f"{detect().fingerprint}.jsonl"
    assert document["file"] == str(file)
    assert document["records"][0]["key"]["rows"] == "1"
    found = read_records([file])
    assert [r.model_dump(mode="json", exclude_none=True) for r in found.records] == document["records"]
    assert all(r.roof_microseconds for r in found.records)
    before = file.read_bytes()
    second = awq_tvm("tune", "64x48", "--group-size", 32, "--trials", 1, "--json")
    again = json.loads(second.stdout)
    assert (again["records"], again["candidates"], again["known"]) == ([], 0, len(found.records))
    assert file.read_bytes() == before


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    process = subprocess.Popen(
        [
            sys.executable, "-c",
            # A runner of tests may ignore SIGINT, and children inherit that.
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from awq_tvm.cli.main import run; sys.exit(run(sys.argv[1:]))",
            "tune", "64x48,64x96", "--group-size", "32", "--trials", "5", "-o", str(file), "--json",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (file.exists() and file.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    document = json.loads(out)
    found = read_records([file])
    assert document["interrupted"]
    assert document["left"] > 0
    assert len(found.records) == len(document["records"]) >= 1
    rest = awq_tvm("tune", "64x48,64x96", "--group-size", 32, "--trials", 1, "-o", file, "--json")
    assert json.loads(rest.stdout)["known"] == len(found.records)
    assert len(read_records([file]).by_key()) == len(found.records) + document["left"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["0x64"], 2, "no linear of 0x64"),
        (["64x48", "--trials", "0"], 2, "--trials"),
        (["64x48", "--threads", "4096"], 2, "threads cannot be measured"),
        (["64x48", "--target", "cuda"], 5, "cannot run code for"),
        (["/no/such/model"], 2, "/no/such/model"),
        (["100x64"], 4, "does not divide"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", *arguments]) == code
    assert says in capsys.readouterr().err
