"""A folder that appears whole or not at all: built as `<out>.partial`, synced, renamed; one writer a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from awq_tvm.errors import ResourceError

# Tells a partial folder of ours, which may be cleared, from one of the user that happens to have the name.
_MARKER = ".being-written-by-awq_tvm"


@contextmanager
def output_folder(out: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield the partial folder to fill; on success it becomes `out`, on any exception it is removed.

    Args:
        out: must not exist; missing parents are made.
        needed_bytes: the least that will be written; refused up front if the disk has less.

    Raises:
        ResourceError: if out exists, its parent cannot be written, the disk is too small or becomes full, or
            another process is writing the same out.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - a symlink in the parents is the user's business
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _lock(out):
            _refuse_existing(out)
            _refuse_small_disk(out, needed_bytes)
            _clear_partial(partial)
            partial.mkdir()
            try:
                write_synced(partial / _MARKER, f"{os.getpid()}\n".encode())
                yield partial
                (partial / _MARKER).unlink()
                _sync_folder(partial)
                _refuse_existing(out)
                partial.rename(out)
                _sync_folder(out.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # gone already where the rename was reached
    except OSError as error:
        raise ResourceError(
            "cannot write the output",
            where=error.filename or str(out),
            why=error.strerror or str(error),
            fix="choose another output folder, or make room or give permission there",
        ) from error


def write_synced(path: Path, content: bytes) -> None:
    """Write one new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold `<out>.lock`; the system lets go of it if this process dies, however it dies."""
    path = out.with_name(f"{out.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise ResourceError(
                "another process is writing the same output",
                where=str(out),
                why=f"process {holder or 'unknown'} holds {path.name}",
                fix="wait for it, end it, or choose another output folder",
            ) from None
        if is_same_file(descriptor, path):
            break
        os.close(
            descriptor
        )  # the holder removed the file between our open and our lock: try with the new one
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """True if path still names the file that is open as descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise ResourceError(
            "the output exists already",
            where=str(out),
            why="nothing is overwritten",
            fix="choose another output folder, or remove this one",
        )


def _refuse_small_disk(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        raise ResourceError(
            "too little room on the disk",
            where=str(out.parent),
            why=f"at least {needed_bytes} bytes are needed, {free} are free",
            fix="make room, or choose an output folder on another disk",
        )


def _clear_partial(partial: Path) -> None:
    """Remove what a killed run left; its lock is ours now, so nobody is writing there."""
    if not os.path.lexists(partial):
        return
    if partial.is_symlink() or not (partial / _MARKER).is_file():
        raise ResourceError(
            "the folder needed while writing exists already",
            where=str(partial),
            why="it is not one that an interrupted run left",
            fix="move it away, or choose another output folder",
        )
    shutil.rmtree(partial)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
