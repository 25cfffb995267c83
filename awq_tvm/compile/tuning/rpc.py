"""Measure on devices of TVM's tracker, on this machine or at the end of an ssh tunnel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

from awq_tvm.bundle.machine import architecture
from awq_tvm.compile.tuning.device_library import check_device
from awq_tvm.compile.tuning.local import LIMIT_S
from awq_tvm.compile.tuning.measurement import Failed, Outcome, Trial, outcome_from_json
from awq_tvm.compile.tuning.worker_process import WorkerProcess
from awq_tvm.errors import TargetError, UsageError
from awq_tvm.rpc_session import LOOPBACK
from awq_tvm.targets import Target

WAIT_S = 60.0
"""For a device that is busy, or that was lost: servers come back after a restart."""

_BUILD_S = 180.0
"""More than importing TVM, building the candidates of a trial, and sending the operands of a large linear takes."""


def tracker_address(text: str) -> tuple[str, int]:
    """Read "127.0.0.1:9190".

    Raises:
        UsageError: it is no address, or not of this machine.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"{text!r} is no address of a tracker", where="--rpc", fix="write 127.0.0.1:9190")
    if host not in LOOPBACK:
        raise UsageError(
            "the tracker must be on this machine",
            where="--rpc",
            why="who reaches TVM's RPC can run anything there, and nothing of it is encrypted",
            fix=f"ssh -L {port}:127.0.0.1:{port} {host}, and --rpc 127.0.0.1:{port}",
        )
    return host, int(port)


class RpcMeasurer:
    """Devices of one key; use in a ``with`` block.

    Args:
        target: what candidates are compiled for; the devices must be able to run it.
        address: of the tracker.
        key: of the devices.
        threads: that kernels run on.
        limit: seconds for a trial on the device.
        wait: seconds for a device that is busy or was lost.
        modules: with schedule families of their own, imported where candidates are built.

    Raises:
        TargetError: no tracker or device answers, or it cannot run the target's code.
        UsageError: the device has not so many cores.

    Attributes:
        machine: what the device calls its processor, or the board itself.
    """

    name: Literal["rpc"] = "rpc"

    def __init__(
        self,
        target: Target,
        address: tuple[str, int],
        key: str,
        *,
        threads: int = 1,
        limit: float = LIMIT_S,
        wait: float = WAIT_S,
        modules: Sequence[str] = (),
    ) -> None:
        check_device(target)
        self.threads, self._limit, self._wait = threads, limit, wait
        self._where = f"tracker {address[0]}:{address[1]}, key {key}"
        numbers = (str(threads), str(limit), str(wait))
        arguments = (address[0], str(address[1]), key, json.dumps(target.as_dict()), *numbers, *modules)
        self._worker = WorkerProcess("awq_tvm.compile.tuning.rpc_worker", arguments)
        self._load: float | None = None
        try:
            self.machine = self._check(target)
        except BaseException:
            self._worker.stop()
            raise

    def __enter__(self) -> RpcMeasurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.stop()

    def load(self) -> float | None:
        """See ``Measurer.load``."""
        return self._load

    def measure(self, trial: Trial) -> Outcome:
        """See ``Measurer.measure``."""
        # Twice, since a trial is begun anew on another device if the first is lost.
        answer = self._ask(trial.to_json(), _BUILD_S + 2 * (self._limit + self._wait))
        if answer is None:
            # Not even an error came back. Is there still a device?
            self._describe()
            return Failed("died", f"no answer came from the device: {self._worker.last_words()}")
        self._load = answer["load"]
        return outcome_from_json(json.dumps(answer["outcome"]))

    def _describe(self) -> dict[str, Any]:
        answer = self._ask("{}", _BUILD_S + self._wait)
        if answer is None:
            raise self._lost(f"the client ended: {self._worker.last_words()}")
        return answer

    def _ask(self, line: str, seconds: float) -> dict[str, Any] | None:
        """An answer; None where the client was lost, or had none in time."""
        try:
            answer: dict[str, Any] = json.loads(self._worker.ask(line, seconds))
        except ValueError:
            self._worker.end()
            return None
        if "lost" in answer:
            raise self._lost(str(answer["lost"]))
        return answer

    def _lost(self, why: str) -> TargetError:
        return TargetError(
            "No device to measure on",
            where=self._where,
            why=why,
            fix="docs/tuning-devices.md says how to start the tracker and a device's server",
        )

    def _check(self, target: Target) -> str:
        """The device's name, if it can run the target's code."""
        found = self._describe()
        needed, here = architecture(target.tvm_target["mtriple"]), found["architecture"]
        lacking = sorted(target.features - set(found["features"]))
        if needed != here or lacking:
            raise TargetError(
                f"The device cannot run code for {target.name}",
                where=self._where,
                why=f"it lacks {', '.join(lacking)}" if needed == here else f"it is {here}",
                fix="name the device's own target with --target",
            )
        if not 1 <= self.threads <= found["cpus"]:
            raise UsageError(
                f"{self.threads} threads cannot be measured",
                where="--threads",
                why=f"the device has {found['cpus']} cores",
            )
        return str(found["machine"])
