"""An Android device over adb, the program of Android's platform tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from awq_tvm.errors import UnsupportedError
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.push.address import Address
from awq_tvm.push.device import Device, Finished

_NO_DEVICE = re.compile(
    r"^(?:adb|error): .*(?:not found|no devices|offline|unauthorized|more than one|cannot connect)",
    re.MULTILINE,
)


class AdbDevice(Device):
    """A device that `adb devices` lists, with Android 7 or later: before it adb told no exit codes.

    Args:
        address: where it is.

    Raises:
        UnsupportedError: adb is not installed.
    """

    # `adb push` writes whole files.
    can_append = False

    def __init__(self, address: Address) -> None:
        super().__init__(address.url)
        program = shutil.which("adb")
        if program is None:
            raise UnsupportedError(
                "adb is not installed.",
                where=address.url,
                why="no adb is on the path",
                fix="install Android's platform tools, for example: apt-get install adb",
            )
        self._command = [program, *(("-s", address.host) if address.host else ())]

    def run(self, script: str) -> Finished:
        """See `Device.run`."""
        # -n: standard input is not the device's; -T: no terminal, which would rewrite line ends.
        return self._adb("shell", "-n", "-T", script)

    def append(self, local: Path, offset: int, remote: str, progress: ProgressCallback) -> None:
        """See `Device.append`; only from the beginning."""
        assert offset == 0
        done = self._adb("push", str(local), remote)
        if done.code:
            raise self.failed(done.errors or done.output)
        size = local.stat().st_size
        progress(ProgressEvent("copy", size, size, local.name))

    def _adb(self, *arguments: str) -> Finished:
        done = subprocess.run(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode and _NO_DEVICE.search(done.stderr):
            raise self.unreachable(done.stderr, "see what `adb devices` says")
        return Finished(done.returncode, done.stdout, done.stderr)
