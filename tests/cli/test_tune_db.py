from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awq_tvm.cli.main import run
from awq_tvm.compile.tuning.places import shipped_folder, user_folder
from awq_tvm.compile.tuning.record import TunedRecord
from awq_tvm.compile.tuning.record_file import append_record, read_records
from awq_tvm.schedules.rule import versions
from tests.support import tuned_records

VERSION = versions("x86")["x86.int8"]


def record_of(**fields: Any) -> TunedRecord:
    """A record of the family's present version, where no other is asked for."""
    return tuned_records.record_of(**{"rule_version": VERSION, **fields})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two records of one kernel, one of another, and a bad line."""
    path = tmp_path / "x86-0123456789ab.jsonl"
    for record in (record_of(), record_of(at="2026-11-27T00:00:00Z", cold=5.0), record_of(rows="2-8")):
        append_record(path, record)
    with path.open("ab") as file:
        file.write(b"null\n")
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    return document


def test_list_shows_the_newest_of_each_kernel(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", "db", "list", str(mixed)]) == 0
    shown = capsys.readouterr()
    assert "960x576 w4 g64 int8, M 1, x86.int8 v" in shown.out
    assert "one_row(rows=1, blocks=2, sums=2, ahead=4096)" in shown.out
    assert "2.00" in shown.out
    assert "line 4" in shown.err
    assert "2 records, 1 not shown, 1 bad lines" in shown.err


def test_list_by_target(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, count in (("x86-0123456789ab", 2), ("x86-64-v3", 0)):
        assert run(["tune", "db", "list", str(mixed.parent), "--target", target, "--json"]) == 0
        records = printed(capsys)["records"]
        assert isinstance(records, list)
        assert len(records) == count
    assert run(["tune", "db", "list", str(mixed), "--target", "abacus"]) == 5


def test_list_reads_your_own_records_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "awq_tvm" / "tuned"
    append_record(user_folder() / "x86-0123456789ab.jsonl", record_of())
    assert run(["tune", "db", "list", "--target", "x86-0123456789ab", "--json"]) == 0
    assert printed(capsys)["records"] == [record_of().model_dump(mode="json", exclude_none=True)]


def test_merge_is_the_union_of_the_newest(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other.jsonl", tmp_path / "all.jsonl"
    append_record(other, record_of(at="2026-11-28T00:00:00Z", cold=6.0))
    append_record(out, record_of(in_features=64))
    before = mixed.read_bytes()
    # The output lies in a folder that is read.
    assert run(["tune", "db", "merge", str(tmp_path), "-o", str(out), "--json"]) == 0
    assert printed(capsys) == {"schema_version": 1, "out": str(out), "files": 2, "records": 3, "bad": 1}
    merged = read_records([out])
    assert {(r.key.in_features, r.key.rows, r.microseconds.cold) for r in merged.records} == {
        (64, "1", 8.0),
        (576, "1", 6.0),
        (576, "2-8", 8.0),
    }
    assert mixed.read_bytes() == before
    again = out.read_bytes()
    assert run(["tune", "db", "merge", str(other), str(mixed), "-o", str(out)]) == 0
    assert out.read_bytes() == again


def test_verify(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", "db", "verify", str(mixed), "--json"]) == 1
    document = printed(capsys)
    assert (document["good"], document["blank"]) == (3, 0)
    assert [line["line"] for line in document["bad"]] == [4]  # type: ignore[attr-defined]
    assert run(["tune", "db", "prune", str(mixed)]) == 0
    assert "2 kept; 1 older, 0 retired and 1 bad removed" in capsys.readouterr().out
    assert run(["tune", "db", "verify", str(mixed)]) == 0
    assert "2 good lines, 0 blank, 0 bad; 0 retired" in capsys.readouterr().out
    assert mixed.with_name(mixed.name + ".rejected").read_bytes() == b"null\n"


def test_records_of_another_version_are_retired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.jsonl"
    for record in (record_of(), record_of(rule_version=999), record_of(rule="x86.gone")):
        append_record(path, record)
    assert run(["tune", "db", "verify", str(path), "--json"]) == 0
    old = printed(capsys)["retired"]
    assert isinstance(old, list)
    assert len(old) == 2
    assert "x86.int8 is at version" in old[0]
    assert "no schedule family x86.gone" in old[1]
    assert run(["tune", "db", "prune", str(path)]) == 0
    said = capsys.readouterr()
    assert "1 kept; 0 older, 2 retired and 0 bad removed" in said.out
    assert "retired: x86-0123456789ab, 960x576 w4 g64 int8, M 1, x86.int8 v999: x86.int8 is at" in said.err
    assert read_records([path]).records == (record_of(),)


def test_what_came_with_the_program_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    if not shipped_folder().is_dir():
        pytest.skip("no records came with it")
    assert run(["tune", "db", "verify", str(shipped_folder())]) == 0


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_place_without_records_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", "db", command, str(tmp_path)]) == 2
    assert "no tuned records here" in capsys.readouterr().err
