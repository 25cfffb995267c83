"""A device over ssh, by the ssh of this machine: its keys, its configuration, its agent.

One connection is made, and everything goes through it: whoever types a password types it once.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from awq_tvm.errors import ResourceError, UnsupportedError
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.push.address import Address
from awq_tvm.push.device import PIECE_BYTES, Device, Finished, quote

# With which ssh ends when it has no connection; any other code is the script's.
_NO_CONNECTION = 255


# A connection whose program was killed ends by itself after so many seconds.
_IDLE_SECONDS = 60


@contextmanager
def open_ssh(address: Address) -> Iterator[Device]:
    """Connect to a host with an ssh server.

    Raises:
        UnsupportedError: ssh is not installed.
        ResourceError: the host cannot be reached.
    """
    # Paths of sockets are short: not below a folder of the user's choice.
    with tempfile.TemporaryDirectory(prefix="awq_tvm-", dir="/tmp") as folder:
        device = SshDevice(address, Path(folder) / "ssh")
        device.connect()
        try:
            yield device
        finally:
            device.disconnect()


class SshDevice(Device):
    """A host with an ssh server.

    Args:
        address: where it is.
        socket: path of the connection's socket here.

    Raises:
        UnsupportedError: ssh is not installed.
    """

    def __init__(self, address: Address, socket: Path) -> None:
        super().__init__(address.url)
        program = shutil.which("ssh")
        if program is None:
            raise UnsupportedError(
                "ssh is not installed.",
                where=address.url,
                why="no ssh is on the path",
                fix="install OpenSSH's client, for example: apt-get install openssh-client",
            )
        self._command = [
            program,
            *("-T", "-S", str(socket), "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15"),
            *(() if address.ssh_config is None else ("-F", str(address.ssh_config))),
            *(() if address.port is None else ("-p", str(address.port))),
        ]
        self._place = ("--", f"{address.user}@{address.host}" if address.user else address.host)

    def connect(self) -> None:
        """Make the connection, in the background, once the host has let us in.

        Raises:
            ResourceError: the host cannot be reached.
        """
        # The process in the background keeps what it writes to open: a pipe would never end.
        with tempfile.TemporaryFile() as errors:
            options = ("-M", "-N", "-f", "-o", f"ControlPersist={_IDLE_SECONDS}")
            done = subprocess.run(
                [*self._command, *options, *self._place],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                check=False,
            )
            errors.seek(0)
            if done.returncode:
                raise self._lost(errors.read(1 << 16).decode(errors="replace"))

    def disconnect(self) -> None:
        """End the connection."""
        subprocess.run(
            [*self._command, "-O", "exit", *self._place],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def run(self, script: str) -> Finished:
        """See `Device.run`."""
        done = subprocess.run(
            [*self._command, *self._place, _remote(script)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == _NO_CONNECTION:
            raise self._lost(done.stderr)
        return Finished(done.returncode, done.stdout, done.stderr)

    def append(self, local: Path, offset: int, remote: str, progress: ProgressCallback) -> None:
        """See `Device.append`."""
        size = local.stat().st_size
        with tempfile.TemporaryFile() as errors, local.open("rb") as file:
            file.seek(offset)
            process = subprocess.Popen(
                [*self._command, *self._place, _remote(f"cat >> {quote(remote)}")],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            assert process.stdin is not None
            try:
                while piece := file.read(PIECE_BYTES):
                    process.stdin.write(piece)
                    progress(ProgressEvent("copy", file.tell(), size, local.name))
                process.stdin.close()
            except BrokenPipeError:
                pass  # The reason is in what ssh says and ends with.
            except BaseException:
                process.kill()
                raise
            finally:
                process.wait()
            errors.seek(0)
            message = errors.read(1 << 16).decode(errors="replace")
        if process.returncode == _NO_CONNECTION:
            raise self._lost(message)
        if process.returncode:
            raise self.failed(message or f"writing {remote} ended with code {process.returncode}")

    def _lost(self, message: str) -> ResourceError:
        return self.unreachable(message, f"see that `ssh {self._place[1]}` works")


def _remote(script: str) -> str:
    """One word for the login shell there, whichever that is."""
    return f"exec sh -c {shlex.quote(script)}"
