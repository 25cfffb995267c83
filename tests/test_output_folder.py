"""The folder that appears whole or not at all, and the refusals before it is begun."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from awq_tvm.errors import ResourceError
from awq_tvm.output_folder import check_output, is_same_file, output_folder, write_synced


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(out: Path, content: str = "1", needed_bytes: int = 0) -> Path:
    with output_folder(out, needed_bytes=needed_bytes) as folder:
        write_synced(folder / "x", content.encode())
    return out


def refuse(out: Path, what: str, why: str) -> ResourceError:
    """Both the check up front and the write refuse `out` for the same reason; the error is complete."""
    for attempt in (check_output, write):
        with pytest.raises(ResourceError) as caught:
            attempt(out)
        error = caught.value
        assert what in error.what
        assert error.where
        assert why in (error.why or "")
        assert error.fix
    return error


def test_the_output_appears_only_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with output_folder(out) as folder:
        (folder / "x").write_text("1")
        assert not out.exists()
        assert folder == tmp_path / "a.partial"
    assert names(out) == ["x"]
    assert names(tmp_path) == ["a"]
    stamp = out.stat().st_mtime_ns
    time.sleep(0.01)
    with pytest.raises(ResourceError, match="exists already"), output_folder(out):
        pass
    assert out.stat().st_mtime_ns == stamp


def test_a_relative_output_with_missing_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(Path("some/where/../a"))
    assert names(tmp_path) == []
    write(Path("some/where/../a"))
    assert (tmp_path / "some" / "a" / "x").read_text() == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with (  # noqa: PT012 - a file is there when it is raised
        pytest.raises(ResourceError if error is OSError else error),
        output_folder(tmp_path / "a") as folder,
    ):
        (folder / "x").write_text("1")
        raise error
    assert names(tmp_path) == []
    write(tmp_path / "a")


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        refuse(tmp_path / name, "exists already", "nothing is overwritten")
    assert names(tmp_path) == ["file", "folder", "link"]
    assert names(tmp_path / "folder") == []
    assert (tmp_path / "file").read_text() == "x"
    for existing in (Path("/"), Path()):
        refuse(existing, "exists already", "nothing is overwritten")


def test_an_output_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="exists already"), output_folder(tmp_path / "a"):
        (tmp_path / "a").mkdir()  # empty: a rename would silently replace it
    assert names(tmp_path) == ["a"]


def test_a_parent_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        for out in (tmp_path / name / "a", tmp_path / name / "b" / "a"):
            refuse(out, "cannot write the output", f"{tmp_path / name} is not a directory")
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file", "link"]


WRITE_AS_NOBODY = """
import os, sys
from pathlib import Path
from awq_tvm.errors import ResourceError
from awq_tvm.output_folder import check_output, output_folder
if os.geteuid() == 0:
    os.setuid(65534)
try:
    check_output(Path(sys.argv[1]))
except ResourceError as error:
    print(error)
try:
    with output_folder(Path(sys.argv[1])):
        pass
except ResourceError as error:
    print(error)
"""


@pytest.mark.parametrize(("mode", "why"), [(0o555, "is not writable"), (0o000, "Permission denied")])
def test_a_parent_that_may_not_be_written(mode: int, why: str, repository: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # a tmp_path lies in a folder that other users cannot enter
        Path(name).chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", WRITE_AS_NOBODY, str(Path(name) / "a")],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        Path(name).chmod(0o700)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("cannot write the output") == 2
        assert done.stdout.count(why) == 2
        assert names(Path(name)) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a /proc that takes no files")
def test_a_file_system_that_takes_no_folders() -> None:
    with pytest.raises(ResourceError, match="cannot write the output"):
        write(Path("/proc/awq_tvm_out"))


@pytest.mark.parametrize("length", [300, 250])  # of 250, only the name while writing is too long
def test_a_name_the_file_system_refuses(tmp_path: Path, length: int) -> None:
    refuse(tmp_path / ("x" * length), "cannot write the output", "File name too long")
    assert names(tmp_path) == []


def test_too_little_disk_is_seen_up_front(tmp_path: Path) -> None:
    check_output(tmp_path / "a", 1)
    message = r"too little room on the disk(.|\n)*\d+ bytes are needed, \d+ are free"
    with pytest.raises(ResourceError, match=message):
        check_output(tmp_path / "a", 1 << 60)
    with pytest.raises(ResourceError, match=message):
        write(tmp_path / "a", needed_bytes=1 << 60)
    assert names(tmp_path) == []
    write(tmp_path / "a", needed_bytes=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    with (  # noqa: PT012 - the folder to write into is there only inside
        pytest.raises(ResourceError) as caught,
        output_folder(tmp_path / "a") as folder,
    ):
        (folder / "x").symlink_to("/dev/full")
        (folder / "x").write_text("1")
    assert caught.value.what == "no room left for the output"
    assert caught.value.where == str(tmp_path / "a")
    assert caught.value.why == "No space left on device"
    assert "make room" in (caught.value.fix or "")
    assert names(tmp_path) == []


HOLD = """
import sys, time
from pathlib import Path
from awq_tvm.output_folder import output_folder
with output_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, repository: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing tmp_path/a."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a")], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_told_who_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ResourceError, match=f"process {holder.pid} holds a.lock"):
        write(tmp_path / "a")
    assert (tmp_path / "a.partial" / "half").read_text() == "x"
    write(tmp_path / "b")  # another output is free


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "a.partial").is_dir()
    assert not (tmp_path / "a").exists()
    check_output(tmp_path / "a")
    assert names(tmp_path) == ["a.lock", "a.partial"]  # a check changes nothing
    write(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["x"]


@pytest.mark.parametrize("content", [[], ["weights"]])
def test_a_writer_killed_before_or_after_the_mark_is_cleared_away(tmp_path: Path, content: list[str]) -> None:
    """The mark is made after the folder and removed before the rename; then the lock it left says whose it is."""
    (tmp_path / "a.partial").mkdir()
    for name in content:
        (tmp_path / "a.partial" / name).write_text("x")
    (tmp_path / "a.lock").write_text("123\n")
    with output_folder(tmp_path / "a") as folder:
        assert names(folder) == [".being-written-by-awq_tvm"]
    assert names(tmp_path) == ["a"]


def test_a_partial_of_the_user_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "precious").write_text("x")
    (tmp_path / "b.partial").write_text("precious")
    (tmp_path / "c.partial").symlink_to("nowhere")
    with pytest.raises(RuntimeError), output_folder(tmp_path / "good") as marked:  # noqa: PT012
        (tmp_path / "d.partial").symlink_to(marked)  # a link is not ours, whatever it leads to
        refuse(tmp_path / "d", "needed while writing", "no mark of an interrupted run")
        raise RuntimeError
    for name in ("a", "b", "c"):
        error = refuse(tmp_path / name, "needed while writing", "no mark of an interrupted run")
        assert error.where == str(tmp_path / f"{name}.partial")
    assert (tmp_path / "a.partial" / "precious").read_text() == "x"
    assert (tmp_path / "b.partial").read_text() == "precious"
    assert names(tmp_path) == ["a.partial", "b.partial", "c.partial", "d.partial"]


def test_a_lock_file_of_the_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").write_text("version = 1\n")
    with pytest.raises(ResourceError, match="holds no process id") as caught:
        write(tmp_path / "uv")
    assert caught.value.where == str(tmp_path / "uv.lock")
    assert (tmp_path / "uv.lock").read_text() == "version = 1\n"
    assert names(tmp_path) == ["uv.lock"]
    (tmp_path / "uv.lock").write_text("4194304\n")  # the twin: what a killed writer leaves
    write(tmp_path / "uv")
    assert names(tmp_path) == ["uv"]


def test_many_writers_of_one_output_lose_nothing(tmp_path: Path, repository: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom awq_tvm.errors import ResourceError\n"
        "from awq_tvm.output_folder import output_folder, write_synced\n"
        "try:\n"
        "    with output_folder(Path(sys.argv[1])) as folder:\n"
        "        write_synced(folder / 'x', sys.argv[2].encode())\n"
        "    print('wrote', sys.argv[2])\n"
        "except ResourceError as error:\n"
        "    print('refused', error.what)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "a"), str(i)],
            cwd=repository,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(6)
    ]
    said = [process.communicate()[0].strip() for process in processes]
    wrote = [line.split()[1] for line in said if line.startswith("wrote")]
    assert len(wrote) == 1
    assert (tmp_path / "a" / "x").read_text() == wrote[0]
    assert all(
        line.startswith(("wrote", "refused another process", "refused the output exists")) for line in said
    )
    assert names(tmp_path) == ["a"]


def test_a_lock_file_that_was_removed_or_replaced_is_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with path.open("w") as file:
        assert is_same_file(file.fileno(), path)
        path.unlink()
        assert not is_same_file(file.fileno(), path)
        path.write_text("another")
        assert not is_same_file(file.fileno(), path)


def test_write_synced_overwrites_nothing(tmp_path: Path) -> None:
    write_synced(tmp_path / "x", b"1")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "x", b"2")
    assert (tmp_path / "x").read_bytes() == b"1"
