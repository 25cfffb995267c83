"""A full disk, of which compilers and other programs tell by what they print."""

from __future__ import annotations

import errno
import os

from awq_tvm.errors import ResourceError


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
        fix="free some space, or set TMPDIR to a folder that has more",
    )
