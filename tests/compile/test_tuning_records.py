"""Files of tuned records, with real processes that write, die and read at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awq_tvm.compile.tuning.record import name_of_rows, parse_line, range_of_rows
from awq_tvm.compile.tuning.record_file import (
    BadLine,
    Records,
    append_record,
    read_records,
    record_files,
    replace_records,
    sorted_records,
)
from awq_tvm.errors import ResourceError
from tests.support.tuned_records import key_of, record_of

ROOT = Path(__file__).parents[2]
GOOD = record_of().to_line()


def writer(path: Path, first: int, count: int) -> subprocess.Popen[str]:
    """A process that says "ready" and then adds ``count`` records, of K = first, first + 1, ..."""
    program = (
        "import sys; from pathlib import Path\n"
        "from awq_tvm.compile.tuning.record_file import append_record\n"
        "from tests.support.tuned_records import record_of\n"
        f"print('ready', flush=True); sys.stdin.readline()\n"
        f"for k in range({first}, {first + count}): append_record(Path({str(path)!r}), record_of(in_features=k))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_record_comes_back_as_it_was() -> None:
    assert parse_line(GOOD) == record_of()
    assert json.loads(GOOD)["schema_version"] == 1


def test_eight_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "made by the first" / "x86-0123456789ab.jsonl"
    writers = [writer(path, 1000 * (i + 1), 25) for i in range(8)]
    for process in writers:
        start(process)
    for process in writers:
        go(process)
    assert [process.wait(60) for process in writers] == [0] * 8
    found = read_records([path])
    assert sorted(r.key.in_features for r in found.records) == sorted(
        1000 * (i + 1) + j for i in range(8) for j in range(25)
    )
    assert (found.bad, found.blank) == ((), 0)


def test_kill_in_the_middle_of_writing(tmp_path: Path) -> None:
    path = tmp_path / "x86-0123456789ab.jsonl"
    append_record(path, record_of(in_features=1))
    for turn in range(4):
        process = writer(path, 10_000 * (turn + 1), 9000)
        start(process)
        go(process)
        time.sleep(0.05 + 0.03 * turn)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    append_record(path, record_of(in_features=2))
    found = read_records([path])
    sizes = {r.key.in_features for r in found.records}
    assert {1, 2} <= sizes
    assert len(sizes) > 6, "the writers were killed before they wrote anything"
    for turn in range(4):
        own = sorted(k for k in sizes if k // 10_000 == turn + 1)
        assert own == list(range(10_000 * (turn + 1), 10_000 * (turn + 1) + len(own)))
    assert len(found.bad) <= 4


@pytest.mark.parametrize("cut", [1, 40, len(GOOD) - 2])
def test_the_next_writer_leaves_a_torn_line_behind(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_bytes(record_of(in_features=8).to_line() + GOOD[:cut])
    assert len(read_records([path]).bad) == 1
    append_record(path, record_of(in_features=16))
    found = read_records([path])
    assert [r.key.in_features for r in found.records] == [8, 16]
    assert [line.number for line in found.bad] == [2]
    assert str(path) in found.bad[0].title


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"{}",
        b"[]",
        b'"x"',
        b"\0" * 80,
        b"\xff\xfe",
        b"[" * 5000,
        GOOD.replace(b'"cold":8.0', b'"cold":NaN').strip(),
        GOOD.replace(b'"cold":8.0', b'"cold":Infinity').strip(),
        GOOD.replace(b'"cold":8.0', b'"cold":-1').strip(),
        GOOD.replace(b'"cold":8.0', b'"cold":"8"').strip(),
        GOOD.replace(b'"schema_version":1', b'"schema_version":2').strip(),
        GOOD.replace(b'"schema_version":1', b'"schema_version":1,"run":"rm"').strip(),
        GOOD.replace(b'"rows":"1"', b'"rows":"8-2"').strip(),
        GOOD.replace(b'"x86-0123456789ab"', b'"../../etc"').strip(),
        GOOD.replace(b'"in_features":576', b'"in_features":0').strip(),
        GOOD.replace(b'"in_features":576', b'"in_features":1e300').strip(),
        GOOD.replace(b'"ahead":4096', b'"ahead":[1]').strip(),
        GOOD.strip() + b" " * 70_000,
        GOOD.strip() + GOOD.strip(),
    ],
)
def test_a_bad_line_is_set_aside_and_its_neighbours_are_kept(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(GOOD + b"\n  \n" + line + b"\n" + record_of(in_features=8).to_line())
    found = read_records([path])
    assert [r.key.in_features for r in found.records] == [576, 8]
    assert [bad.content for bad in found.bad] == [line]
    assert found.bad[0].number == 4
    assert found.bad[0].why
    assert found.blank == 2


def test_a_file_that_is_no_text_at_all(tmp_path: Path) -> None:
    path = tmp_path / "noise.jsonl"
    path.write_bytes(bytes(range(256)) * 64)
    found = read_records([path])
    assert found.records == ()
    assert found.bad
    append_record(path, record_of())
    assert read_records([path]).records == (record_of(),)


def test_the_newest_record_of_a_key_counts_in_whatever_order_they_come() -> None:
    older, newer = record_of(at="2026-11-26T12:00:00Z"), record_of(at="2026-11-27T12:00:00Z", cold=9.0)
    faster = record_of(at="2026-11-27T12:00:00Z", cold=7.0)
    other = record_of(target="x86-ba9876543210")
    for order in ((older, newer, other, faster), (faster, other, newer, older)):
        assert sorted_records(Records(order)) == [faster, other]


@pytest.mark.parametrize(
    "field",
    [
        {"target": "x86-ba9876543210"},
        {"rule_version": 999},
        {"rows": "2-8"},
        {"bits": 8},
        {"activations": "float"},
        {"layout": "row"},
    ],
)
def test_nothing_is_attributed_to_another_key(field: dict[str, object]) -> None:
    found = Records((record_of(), record_of(**field))).by_key()
    assert found[key_of()] == record_of()
    assert found[key_of(**field)] == record_of(**field)


def test_a_replaced_file_keeps_its_bad_lines_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"null\n" + GOOD)
    before = replace_records(path, sorted_records)
    assert len(before.records) == 2
    assert path.read_bytes() == GOOD
    assert path.with_name("a.jsonl.rejected").read_bytes() == b"null\n"
    assert record_files(tmp_path) == [path]


def test_a_writer_that_waits_while_the_file_is_replaced_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_record(path, record_of(in_features=1))
    process = writer(path, 10, 1)
    start(process)

    def choose(before: Records) -> list[object]:
        go(process)
        time.sleep(0.5)  # the writer waits for the lock of the file that is about to go
        assert process.poll() is None
        return list(before.records)

    replace_records(path, choose)  # type: ignore[arg-type]
    assert process.wait(60) == 0
    assert [r.key.in_features for r in read_records([path]).records] == [1, 10]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    program = (
        "import resource, signal; from pathlib import Path\n"
        "from awq_tvm.errors import ResourceError\n"
        "from awq_tvm.compile.tuning.record_file import append_record\n"
        "from tests.support.tuned_records import record_of\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(GOOD) + 100}, {len(GOOD) + 100}))\n"
        "try:\n"
        f"    append_record(Path({str(path)!r}), record_of(in_features=7))\n"
        "except ResourceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert str(path) in done.stdout
    assert path.read_bytes() == GOOD


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="absent"):
        read_records([tmp_path / "absent.jsonl"])
    with pytest.raises(ResourceError, match="cannot be read"):
        append_record(Path("/proc/absent/a.jsonl"), record_of())


def test_ranges_of_rows() -> None:
    for text, means in (("1", (1, 1)), ("2-8", (2, 8)), ("9+", (9, None))):
        assert range_of_rows(text) == means
        assert name_of_rows(*means) == text
    for text in ("", "0", "8-2", "2-2", "1-", "+", "9++", " 1", "1\n", "٣"):
        with pytest.raises(ValueError, match="not a range"):
            range_of_rows(text)


def test_a_bad_line_says_where_it_is() -> None:
    assert BadLine(Path("a"), 3, "it is torn", b"{").title == "a, line 3: it is torn"
