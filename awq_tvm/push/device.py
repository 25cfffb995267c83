"""What `push` needs of a device: run a script of POSIX sh there, and write into a file there.

Every device has a shell and the usual small tools, Android's toybox included; nothing has to be installed.
"""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from awq_tvm.bundle import machine
from awq_tvm.bundle.machine import Machine
from awq_tvm.errors import AwqTvmError, ResourceError
from awq_tvm.progress import ProgressCallback

PIECE_BYTES = 1 << 20
_NO_ROOM = re.compile(r"no space left|disk quota exceeded|file too large", re.IGNORECASE)
_FACTS = """
uname -m; uname -s; echo -----
cat /proc/cpuinfo 2>/dev/null || sysctl hw.optional 2>/dev/null; echo -----
nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null; true
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A script that ended: its exit code and what it printed."""

    code: int
    output: str
    errors: str


class Device(ABC):
    """A machine that can be reached.

    Attributes:
        name: for messages.
        can_append: whether a file that arrived in part can be gone on with.
    """

    can_append: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def run(self, script: str) -> Finished:
        """Run a script of POSIX sh.

        Raises:
            ResourceError: the device cannot be reached.
        """

    @abstractmethod
    def append(self, local: Path, offset: int, remote: str, progress: ProgressCallback) -> None:
        """Write a file from a place on to the end of one there, which is made where it is missing.

        Args:
            local: the file.
            offset: bytes of it that are there already.
            remote: path on the device.
            progress: told of bytes, as stage "copy".

        Raises:
            ResourceError: the device cannot be reached any more, or has no room.
        """

    def machine(self) -> Machine:
        """What decides which bundles run there."""
        system, cpu, gpus = self.check(_FACTS).split("-----\n")
        architecture, name = system.split("\n")[:2]
        return Machine(
            machine.architecture(f"{architecture.strip()}-"),
            machine.operating_system(name),
            machine.parse_cpuinfo(cpu) | machine.parse_sysctl(cpu),
            tuple(f"sm_{line.strip().replace('.', '')}" for line in gpus.splitlines() if line.strip()),
        )

    def check(self, script: str) -> str:
        """Run a script that must succeed; return what it printed.

        Raises:
            ResourceError: it did not.
        """
        done = self.run(script)
        if done.code:
            raise self.failed(done.errors or done.output or f"it ended with code {done.code}")
        return done.output

    def failed(self, message: str) -> AwqTvmError:
        """The error for something that the device refused."""
        why = message.strip()[-500:]
        if _NO_ROOM.search(message):
            return ResourceError(
                "The disk of the device is full.",
                where=self.name,
                why=why,
                fix="free some space there and push again: what has arrived is kept",
            )
        return ResourceError(
            "The device refused.", where=self.name, why=why, fix="see that the folder can be written to there"
        )

    def unreachable(self, why: str, fix: str) -> ResourceError:
        """The error for a device that does not answer, or does no more."""
        return ResourceError(
            "The device cannot be reached.",
            where=self.name,
            why=why.strip()[-500:] or "the connection ended",
            fix=f"{fix}; a push that was interrupted goes on where it was",
        )


def quote(path: str) -> str:
    """A path as a word of a script; one from "~/" on is in the home folder of the device."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
