"""Child processes that end together with what they have started, compilers above all."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence


def run_group(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of a command in a group of its own, what it prints captured.

    If this process is interrupted or told to end while it waits, the whole group is killed; ``subprocess.run`` would
    leave the compilers that a child has started to themselves.

    Args:
        command: program and arguments; no shell is involved.
        env: the whole environment, or None for this process's own.
        text: for its standard input.
    """
    with subprocess.Popen(
        list(command),
        env=env,
        stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
