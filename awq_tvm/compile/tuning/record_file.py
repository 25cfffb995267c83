"""Files of tuned records: lines are added by many processes at once and survive the death of any of them.

A line goes in by one write under a lock that the system lets go of when its holder dies. A process that is killed in
the middle of the write leaves a torn line; the next writer begins a new one, and readers count it and go on.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from awq_tvm.compile.tuning.record import KernelKey, TunedRecord, parse_line
from awq_tvm.errors import ResourceError, UsageError
from awq_tvm.output_folder import is_same_file

MAX_FILE_BYTES = 256 << 20
SUFFIX = ".jsonl"
REJECTED_SUFFIX = ".rejected"


@dataclass(frozen=True)
class BadLine:
    """A line that is no record.

    Attributes:
        path: the file.
        number: of the line, from 1.
        why: in words.
        content: the line itself.
    """

    path: Path
    number: int
    why: str
    content: bytes = field(repr=False)

    @property
    def title(self) -> str:
        """Where it is and why it is bad."""
        return f"{self.path}, line {self.number}: {self.why}"


@dataclass(frozen=True)
class Records:
    """What was read.

    Attributes:
        records: all that are good, in the order in which they stand.
        bad: all other lines but blank ones.
        blank: how many lines are empty.
    """

    records: tuple[TunedRecord, ...] = ()
    bad: tuple[BadLine, ...] = ()
    blank: int = 0

    def by_key(self) -> dict[KernelKey, TunedRecord]:
        """One record for each key: the newest, of those of one second the fastest."""
        best: dict[KernelKey, TunedRecord] = {}
        for record in self.records:
            if record.key not in best or _rank(record) > _rank(best[record.key]):
                best[record.key] = record
        return best


def sorted_records(found: Records) -> list[TunedRecord]:
    """One record for each key, in the order of keys: a file that is the same whoever merged it."""
    return sorted(
        found.by_key().values(), key=lambda record: tuple(map(str, record.key.model_dump().values()))
    )


def _rank(record: TunedRecord) -> tuple[str, float, bytes]:
    """Total, so that a union does not depend on the order of its parts."""
    return record.measured.at, -record.microseconds.cold, record.to_line()


def record_files(place: Path) -> list[Path]:
    """The files that a path means: itself, or all of a folder; none where there is nothing."""
    if place.is_dir():
        return sorted(path for path in place.glob(f"*{SUFFIX}") if path.is_file())
    return [place] if place.exists() else []


def read_records(paths: Iterable[Path]) -> Records:
    """Read files of records; a bad line is set aside, whatever is in it.

    Raises:
        ResourceError: a file cannot be read, or has more than 256 MiB.
    """
    found = []
    for path in paths:
        with _system_errors(path), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            found.append(_parse(path, file))
    return Records(
        tuple(record for part in found for record in part.records),
        tuple(line for part in found for line in part.bad),
        sum(part.blank for part in found),
    )


def _parse(path: Path, file: BinaryIO) -> Records:
    content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ResourceError(
            "this file is too large for one of tuned records",
            where=str(path),
            why=f"more than {MAX_FILE_BYTES} bytes",
        )
    records: list[TunedRecord] = []
    bad: list[BadLine] = []
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line break is no line
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(parse_line(line))
        except ValueError as error:
            bad.append(BadLine(path, number, str(error), line))
    return Records(tuple(records), tuple(bad), len(lines) - len(records) - len(bad))


def append_record(path: Path, record: TunedRecord) -> None:
    """Add a line to a file, which is made if there is none, and wait until it is on the disk.

    Raises:
        ResourceError: it cannot be written; then nothing of it is in the file.
    """
    with _system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            end = os.fstat(descriptor).st_size
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            line = b"\n" * torn + record.to_line()
            try:
                written = os.write(descriptor, line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            except OSError:
                os.ftruncate(descriptor, end)
                raise
            os.fsync(descriptor)


def replace_records(
    path: Path, choose: Callable[[Records], Sequence[TunedRecord]], *, keep_rejected: bool = True
) -> Records:
    """Put other records in place of a file's, all at once, while writers wait.

    Args:
        path: the file, which is made if there is none.
        choose: what it is to hold, from what it holds.
        keep_rejected: add its bad lines to the file beside it whose name ends in ".rejected", before they go.

    Returns:
        What it held.

    Raises:
        ResourceError: it cannot be read or written; then it is as it was.
    """
    with _system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            with open(descriptor, "rb", closefd=False) as file:
                before = _parse(path, file)
            if before.bad and keep_rejected:
                _add(path.with_name(path.name + REJECTED_SUFFIX), before.bad)
            _replace(path, choose(before))
    return before


def _add(path: Path, lines: Sequence[BadLine]) -> None:
    with path.open("ab") as file:
        file.writelines(line.content + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, records: Sequence[TunedRecord]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(record.to_line() for record in records)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = _open_locked(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Wait for the lock of the file that has this name by then: another may have replaced it meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_same_file(descriptor, path):
            return descriptor
        os.close(descriptor)


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            "this file of tuned records cannot be read or written",
            where=str(error.filename or path),
            why=error.strerror or str(error),
            fix="name a file, or a folder, that you may read and write",
        ) from error


def existing(place: Path) -> list[Path]:
    """As ``record_files``, of a place that the user named.

    Raises:
        UsageError: there is no record file.
    """
    found = record_files(place)
    if not found:
        raise UsageError(
            "there are no tuned records here",
            where=str(place),
            why=f"neither a file nor a folder with files named *{SUFFIX}",
        )
    return found
