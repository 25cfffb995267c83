"""Linking objects into a shared library, and running the tools that do."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_tvm.disk import refuse_full_disk
from awq_tvm.errors import TargetError

MESSAGE_LINES = 12
"""Lines of a failed tool's output that go into an error."""


@dataclass(frozen=True)
class Linker:
    """A command that links position-independent objects into one library.

    Attributes:
        command: the program and its first arguments.
        options: arguments after the objects.
        extension: ".so" or ".dylib".
        note: one sentence for the user.
    """

    command: tuple[str, ...]
    options: tuple[str, ...]
    extension: str
    note: str

    # TVM's export asks its link function for these.
    object_format = "o"

    def __call__(self, output: str, objects: Sequence[str], options: Sequence[str] = (), **_: Any) -> None:
        """Link ``objects`` into ``output``.

        Raises:
            TargetError: the linker is not there or rejects the objects.
        """
        command = [
            *self.command, "-shared", "-fPIC", "-o", str(output), *map(str, objects), *options, *self.options
        ]  # fmt: skip
        run_tool(command, "The library could not be linked")


def run_tool(
    command: Sequence[str], failure: str, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a compiler or linker and return what it printed, stdout then stderr.

    Args:
        command: program and arguments; no shell is involved.
        failure: first line of the error.
        cwd: folder to run in.
        env: the whole environment, or None for this process's own.

    Raises:
        TargetError: it is missing or ends with an error; the end of its output is the reason.
        ResourceError: the disk is full.
    """
    try:
        done = subprocess.run(
            list(command), cwd=cwd, env=env, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise TargetError(
            failure,
            where=command[0],
            why=error.strerror or str(error),
            fix=f"install {Path(command[0]).name}",
        ) from error
    output = done.stdout + done.stderr
    if done.returncode:
        refuse_full_disk(output, command[0])
        why = "\n".join(output.strip().splitlines()[-MESSAGE_LINES:])
        raise TargetError(failure, where=command[0], why=why or f"it ended with code {done.returncode}")
    return output
