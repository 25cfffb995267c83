"""One writer an output: a lock file beside it that names the holder and dies with it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from awq_tvm.errors import ResourceError


@contextmanager
def hold_output(out: Path) -> Iterator[None]:
    """Hold `<out>.lock` for the time of a write.

    The kernel drops the lock with the process, so a killed writer leaves a file but no lock.

    Raises:
        ResourceError: another process holds it; the message names its process id.
        OSError: the lock file cannot be made.
    """
    path = out.with_name(out.name + ".lock")
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise ResourceError(
                "Another process is writing this output.",
                where=str(out),
                why=f"process {holder} holds {path}",
                fix=f"wait for process {holder} to end, or name another output",
            ) from None
        # A holder that just finished may have unlinked the file between our open and our lock.
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            break
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
