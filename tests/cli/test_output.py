from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_tvm.cli.options import is_bundle, whole_numbers
from awq_tvm.cli.output import in_bytes, print_json, table
from awq_tvm.cli.progress_bar import ProgressDisplay
from awq_tvm.errors import UsageError
from awq_tvm.memory import peak_memory
from awq_tvm.progress import ProgressEvent, ignore_progress


def test_json_is_one_strict_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x"), "d": {"k": {3, 1}}, "e": ("é\n",)}
    )
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {
        "schema_version": 1,
        "a": None,
        "b": [None, 1.5],
        "c": "x",
        "d": {"k": [1, 3]},
        "e": ["é\n"],
    }


def test_table_aligns() -> None:
    text = table([("a", 1), ("long", 100)], header=("name", "n"), right=(1,))
    assert text == "name    n\na       1\nlong  100"
    assert table([]) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (97_300_000, "97.3 MB"), (2.5e12, "2.5 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert in_bytes(count) == text


def test_lists_of_numbers() -> None:
    assert whole_numbers("128, 512,", "--x") == (128, 512)
    assert whole_numbers("", "--x") == ()
    with pytest.raises(UsageError, match="found '1;2'"):
        whole_numbers("1;2", "--x")


def test_what_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    assert is_bundle(str(bundle))
    assert not is_bundle(str(tmp_path))
    assert not is_bundle("hf:org/name")


def test_plain_lines_at_both_ends_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        for done in range(101):
            display.update(ProgressEvent("block", done, 100, f"block {done}"))
        display.update(ProgressEvent("write", 0, 0))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert "block 0/100" in lines[0]
    assert "block 100/100" in lines[-2]
    assert "write 0" in lines[-1]
    assert len(lines) < 20
    assert all("peak" in line for line in lines)


def test_quiet_and_ignored_progress_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(quiet=True) as display:
        display.update(ProgressEvent("block", 1, 1))
    ignore_progress(ProgressEvent("block", 1, 1))
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressDisplay() as display:
        display.update(ProgressEvent("block", 1, 3, "loss [bold]0.5[/bold]"))
        display.update(ProgressEvent("block", 3, 3, "loss [bold]0.4[/bold]"))
    err = capsys.readouterr().err
    assert "3/3" in err
    assert "loss [bold]0.4[/bold]" in err


def test_peak_memory_grows_to_bytes() -> None:
    assert 1 << 20 < peak_memory() < 1 << 40
