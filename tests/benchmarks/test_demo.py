"""What the demo reuses from an earlier run, and what it does not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def demo(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    spec = importlib.util.spec_from_file_location("awq_tvm_demo", repository / "benchmarks" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    monkeypatch.setitem(sys.modules, "awq_tvm_demo", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    return module


def test_the_digest_follows_names_and_contents(demo: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    (folder / "b").write_bytes(b"two")
    first = demo.content_digest([folder])
    assert demo.content_digest([folder]) == first
    (folder / "b").write_bytes(b"twp")
    assert demo.content_digest([folder]) != first
    (folder / "b").write_bytes(b"two")
    assert demo.content_digest([folder]) == first
    (folder / "b").rename(folder / "c")
    assert demo.content_digest([folder]) != first


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "\x00"])
def test_damaged_results_are_forgotten(demo: ModuleType, content: str) -> None:
    demo.RESULTS.write_text(content, encoding="utf-8")
    assert demo.read_results() == {}


def test_results_are_written_whole(demo: ModuleType) -> None:
    assert demo.read_results() == {}
    results: dict[str, dict[str, Any]] = {"bench": {"key": "k", "seconds": 1.5, "figures": {"rows": []}}}
    demo.write_results(results)
    assert demo.read_results() == results
    assert [path.name for path in demo.RESULTS.parent.iterdir()] == ["results.json"]


def version_stage(demo: ModuleType, **fields: Any) -> Any:
    return demo.Stage("help", ("--help",), **fields)


def test_a_finished_stage_runs_again_only_when_something_changed(
    demo: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.write_text("one", encoding="utf-8")
    stage = version_stage(demo, reads=(source,))
    results: dict[str, dict[str, Any]] = {}
    demo.run_stage(stage, "program 1", results)
    assert "unchanged" not in capfd.readouterr().out
    assert json.loads(demo.RESULTS.read_text(encoding="utf-8")) == results
    demo.run_stage(stage, "program 1", results)
    assert "unchanged" in capfd.readouterr().out
    demo.run_stage(stage, "program 2", results)
    assert "unchanged" not in capfd.readouterr().out
    source.write_text("two", encoding="utf-8")
    demo.run_stage(stage, "program 2", results)
    assert "unchanged" not in capfd.readouterr().out


def test_a_failing_stage_ends_the_demo_with_its_exit_code(demo: ModuleType) -> None:
    results: dict[str, dict[str, Any]] = {}
    with pytest.raises(SystemExit) as end:
        demo.run_stage(demo.Stage("wrong", ("no-such-verb",)), "program", results)
    assert end.value.code == 2
    assert "key" not in results["wrong"]


@pytest.mark.parametrize("same", [True, False])
def test_an_interrupted_stage_goes_on_only_as_what_it_was(
    demo: ModuleType, tmp_path: Path, same: bool
) -> None:
    stage = version_stage(demo, writes=tmp_path / "quantized")
    assert demo.clear_for(stage, same) is False
    journal = tmp_path / "quantized.journal"
    journal.mkdir()
    (tmp_path / "quantized").mkdir()
    assert demo.clear_for(stage, same) is same
    assert journal.is_dir() is same
    assert not (tmp_path / "quantized").exists()


def test_the_fastest_number_of_threads_is_shown(demo: ModuleType) -> None:
    rows = [
        {"test": "tg64", "threads": 1, "tokens_per_second": 50.0},
        {"test": "tg64", "threads": 2, "tokens_per_second": 80.0},
        {"test": "pp128", "threads": 2, "tokens_per_second": 300.0},
    ]
    assert demo.speed(rows, "tg64")["threads"] == 2
