"""A full disk: before compiling, and of which compilers tell by what they print."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

from awq_tvm.errors import ResourceError

ROOM_BYTES = 64 * 2**20
"""Free for temporary files before anything is compiled: a library, and what compilers leave beside it."""

_FIX = "free some space, or set TMPDIR to a folder that has more"


def require_room_to_compile() -> None:
    """There is some room for temporary files. LLVM ends the process where it cannot write an object.

    Raises:
        ResourceError: there is not.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES:
        raise ResourceError(
            "There is too little room to compile.",
            where=folder,
            why=f"{ROOM_BYTES} bytes are needed for temporary files, {free} are free",
            fix=_FIX,
        )


def refuse_full_disk(said: str, where: str) -> None:
    """Say so where another program ended because the disk is full, and not what else its end looks like.

    Args:
        said: what it printed.
        where: what it was doing, or where it wrote.

    Raises:
        ResourceError: it ran out of room.
    """
    if os.strerror(errno.ENOSPC) not in said:
        return
    raise ResourceError(
        "The disk is full.",
        where=where,
        why=next(line.strip() for line in said.splitlines() if os.strerror(errno.ENOSPC) in line)[:500],
        fix=_FIX,
    )
