"""A device behind TVM's RPC server, on this machine or at the end of a tunnel.

The server can load a library but neither run a script nor take a hash, so the runner brings a small library that
does. It travels with every push, and its file is removed as soon as it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from awq_tvm.bundle.machine import Machine
from awq_tvm.errors import ResourceError, TargetError, UsageError
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.push.address import Address
from awq_tvm.push.device import PIECE_BYTES, Device, Finished
from awq_tvm.rpc_session import last_line, load_library

LIBRARY = "lib/libawq_tvm_rpc.so"


class RpcDevice(Device):
    """A device whose RPC server answers; the session lasts as long as this object.

    Args:
        address: where it is, and the runner for it.

    Raises:
        UsageError: no runner is named, or it lacks the library.
        ResourceError: no server answers.
        TargetError: the device cannot load the library.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(address.url)
        library = None if address.runner is None else address.runner / LIBRARY
        if library is None or not library.is_file():
            raise UsageError(
                "A device behind an RPC server needs the runner for it.",
                where=address.url,
                why="a server can neither run a script nor take a hash by itself"
                if library is None
                else f"{library} is missing",
                fix="--runner DIR, the folder of `cmake --install build/runner --prefix DIR`",
            )
        self._module = self._load(address, library)
        self._shell, self._append, self._machine = (
            self._module.get_function(name) for name in ("shell", "append", "machine")
        )

    def run(self, script: str) -> Finished:
        """See `Device.run`."""
        head, _, printed = str(self._call(self._shell, script)).partition("\n")
        code, length = map(int, head.split())
        # The length counts bytes, and so must we.
        raw = printed.encode()
        return Finished(code, raw[:length].decode(errors="replace"), raw[length:].decode(errors="replace"))

    def append(self, local: Path, offset: int, remote: str, progress: ProgressCallback) -> None:
        """See `Device.append`."""
        path, size = self._absolute(remote), local.stat().st_size
        with local.open("rb") as file:
            file.seek(offset)
            if not size:
                self._call(self._append, path, b"")
            while piece := file.read(PIECE_BYTES):
                self._call(self._append, path, piece)
                progress(ProgressEvent("copy", file.tell(), size, local.name))

    def machine(self) -> Machine:
        """See `Device.machine`; the server's process says it, which may be emulated."""
        architecture, system, features = str(self._call(self._machine)).split("\n")
        return Machine(architecture, system, frozenset(features.split()))

    def _absolute(self, remote: str) -> str:
        if not remote.startswith("~/"):
            return remote
        home = self.check('printf %s "$HOME"')
        return f"{home}/{remote[2:]}"

    def _load(self, address: Address, library: Path) -> Any:
        from tvm import rpc

        try:
            session = rpc.connect(address.host, address.port, key=address.user)
        except Exception as error:  # A different class in every version of TVM.
            raise self._lost(error) from None
        try:
            return load_library(session, library)
        except Exception as error:
            raise TargetError(
                "The device cannot load the runner's library.",
                where=str(library),
                why=last_line(error),
                fix="build the runner for the device: docs/user-guide.md, Without Python",
            ) from None

    def _call(self, function: Any, *arguments: object) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            message = last_line(error)
            # The library's own errors begin with the path they are about.
            if arguments and message.startswith(f"{arguments[0]}: "):
                raise self.failed(message) from None
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> ResourceError:
        return self.unreachable(last_line(error), "see that the server runs: python -m tvm.exec.rpc_server")
