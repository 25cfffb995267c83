"""A folder that appears whole or not at all: built as `<out>.partial`, synced, renamed; one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from awq_tvm.errors import ResourceError

# Tells a partial folder of ours, which may be cleared, from one of the user that happens to have the name.
_MARKER = ".being-written-by-awq_tvm"
_LOCK_BYTES = 32
# EFBIG: file systems that hold no file above 4 GiB, and limits set on the process.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output(out: Path, needed_bytes: int = 0) -> None:
    """Refuse an output that cannot be written, before any work is done for it; changes nothing on the disk.

    Args:
        out: the folder that `output_folder` will make; its missing parents will be made with it.
        needed_bytes: the least that will be written; 0 where it is not known.

    Raises:
        ResourceError: out exists, `<out>.partial` is a folder of the user, a parent is no directory or may not
            be written to, or the disk has less room than is needed.
    """
    out = _absolute(out)
    with _system_errors_as_refusals(out):
        _refuse_existing(out)
        _refuse_foreign_partial(_partial(out), _killed_holder(out))
        parent = next(path for path in out.parents if os.path.lexists(path))
        if not parent.is_dir():
            raise _cannot_write(out, f"{parent} is not a directory")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise _cannot_write(out, f"{parent} is not writable")
        _refuse_small_disk(parent, needed_bytes)


@contextmanager
def output_folder(out: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield the partial folder to fill; on success it becomes `out`, on any exception it is removed.

    The caller syncs the files, for example by `write_synced`; the folders are synced here. While it is being
    filled the partial folder also holds a hidden marker file.

    Args:
        out: must not exist; missing parents are made.
        needed_bytes: the least that will be written; refused before anything is, if the disk has less.

    Raises:
        ResourceError: what `check_output` refuses, the disk is too small or becomes full, or another process is
            writing the same out.
    """
    out = _absolute(out)
    with _system_errors_as_refusals(out):
        check_output(out)
        partial = _partial(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with _lock(out) as killed:
            # Looked at once more: a writer may have finished, or been killed, before the lock became ours.
            _refuse_existing(out)
            _clear_partial(partial, killed)
            _refuse_small_disk(out.parent, needed_bytes)
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


def write_synced(path: Path, content: bytes) -> None:
    """Write one new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _lock(out: Path) -> Iterator[bool]:
    """Hold `<out>.lock`; the system lets go of it if this process dies, however it dies.

    Yields whether the process that held it before was killed: it would have removed the file.
    """
    path = _lock_path(out)
    descriptor = _open_locked(out, path)
    try:
        _refuse_foreign_lock(descriptor, path)
        try:
            killed = bool(os.pread(descriptor, _LOCK_BYTES, 0))
            # One write of one length: whenever this process dies, the file holds a process id.
            os.pwrite(descriptor, f"{os.getpid():>{_LOCK_BYTES - 1}}\n".encode(), 0)
            yield killed
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _open_locked(out: Path, path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, _LOCK_BYTES, 0).strip()
            os.close(descriptor)
            raise ResourceError(
                "another process is writing the same output",
                where=str(out),
                why=f"process {holder.decode() if holder.isdigit() else 'unknown'} holds {path.name}",
                fix="wait for it, end it, or choose another output folder",
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        if is_same_file(descriptor, path):
            return descriptor
        # The holder removed the file between our open and our lock: try with the new one.
        os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """True if path still names the file that is open as descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _absolute(out: Path) -> Path:
    return Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that is refused here


def _lock_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.lock")


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _lies_there(path: Path) -> bool:
    """True for anything of this name, a dangling link too; other than lexists it hides no error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _refuse_existing(out: Path) -> None:
    if _lies_there(out):
        raise ResourceError(
            "the output exists already",
            where=str(out),
            why="nothing is overwritten",
            fix="choose another output folder, or move this one away",
        )


def _refuse_small_disk(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ResourceError(
            "too little room on the disk",
            where=str(folder),
            why=f"at least {needed_bytes} bytes are needed, {free} are free",
            fix="make room, or choose an output folder on another disk",
        )


def _killed_holder(out: Path) -> bool:
    """Whether there is a lock file with the process id of its holder."""
    path = _lock_path(out)
    if not stat.S_ISREG(path.lstat().st_mode if _lies_there(path) else 0):
        return False
    with path.open("rb") as file:
        return file.read(_LOCK_BYTES).strip().isdigit()


def _refuse_foreign_partial(partial: Path, killed: bool) -> None:
    """A partial folder is ours if it has the mark, or its writer was killed before making or after removing it."""
    if not _lies_there(partial):
        return
    if partial.is_symlink() or not partial.is_dir() or not (killed or (partial / _MARKER).is_file()):
        raise ResourceError(
            "the folder needed while writing exists already",
            where=str(partial),
            why="it has no mark of an interrupted run, so it may be yours",
            fix="move it away, or choose another output folder",
        )


def _refuse_foreign_lock(descriptor: int, path: Path) -> None:
    """A lock file of ours is empty or holds a process id; `uv.lock` beside an output `uv` does not."""
    content = os.pread(descriptor, _LOCK_BYTES, 0)
    if content and not content.strip().isdigit():
        raise ResourceError(
            "the lock file needed while writing exists already",
            where=str(path),
            why="it holds no process id, so it may be yours",
            fix="move it away, or choose another output folder",
        )


def _clear_partial(partial: Path, killed: bool) -> None:
    """Remove what a killed run left; its lock is ours now, so nobody is writing there."""
    _refuse_foreign_partial(partial, killed)
    if _lies_there(partial):
        shutil.rmtree(partial)


def _cannot_write(out: Path, why: str) -> ResourceError:
    return ResourceError(
        "cannot write the output",
        where=str(out),
        why=why,
        fix="choose an output folder where you may write",
    )


@contextmanager
def _system_errors_as_refusals(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else out
        if error.errno not in _NO_ROOM:
            raise _cannot_write(where, why) from error
        raise ResourceError(
            "no room left for the output",
            where=str(where),
            why=why,
            fix="make room, or choose an output folder on another disk, and run it again",
        ) from error


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
