"""The comparison runs from the command line, and its rows are the runs it names."""

from __future__ import annotations

import json

import pytest

from benchmarks.quality import main
from tests.quantize.tiny_models import save_tiny_model, write_text


@pytest.fixture
def arguments(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 600)
    return [
        "--model",
        str(tmp_path / "model"),
        "--text",
        str(text),
        "--calibration",
        str(text),
        "--samples",
        "2",
        "--sequence-length",
        "32",
        "--tokens",
        "200",
        "--context",
        "50",
        "--bits",
        "8,3",
    ]


def test_rows(arguments, capsys):
    assert main([*arguments, "--json", "--recipes", "rtn,awq,paper"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["recipe"], row.get("bits")) for row in rows] == [
        ("full precision", None),
        *((recipe, bits) for bits in (8, 3) for recipe in ("rtn", "awq", "paper")),
    ]
    divergence = {(row["recipe"], row.get("bits")): row["kl_divergence"] for row in rows}
    assert divergence["awq", 8] < 0.1 * divergence["awq", 3]


def test_table(arguments, capsys):
    assert main([*arguments, "--recipes", "rtn", "--bits", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["recipe", "---", "full precision", "rtn"]


def test_errors_are_said_not_thrown(arguments, capsys):
    assert main([*arguments, "--calibration", "nowhere.txt", "--recipes", "awq"]) == 2
    assert "no such calibration" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--recipes", "best"])
