"""The process that talks to a device: ``python -m awq_tvm.compile.tuning.rpc_worker HOST PORT KEY ...``.

It reads lines of JSON from standard input: ``{}`` to have the device described, else a trial. It builds the
candidates, has a device of the tracker check and time them, and answers with one line: ``{"load": ..., "outcome":
...}``, a description, or ``{"lost": ...}`` where no device can be had. A process of its own can be ended when the
device, which may have lost its power, does not answer: TVM's client waits for ever.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tvm
from tvm import rpc

from awq_tvm.bundle.machine import parse_cpuinfo
from awq_tvm.compile.tuning import device_plan
from awq_tvm.compile.tuning.device_library import DeviceLibrary, build_describer, build_device_library
from awq_tvm.compile.tuning.measurement import Failed, Trial
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.errors import AwqTvmError
from awq_tvm.rpc_session import last_line, load_library
from awq_tvm.targets import Target

_ANSWER_S = 10.0
"""That a tracker takes to answer at most."""


class LostError(Exception):
    """No device can be had; the words say why."""


class RpcDevice:
    """A device of a tracker, asked for again if it should be lost.

    Args:
        host: of the tracker.
        port: of it.
        key: of the devices.
        target: that they are.
        threads: that kernels run on.
        limit: seconds for a trial.
        wait: seconds to wait for a device that is busy, or that was lost.
    """

    def __init__(
        self, host: str, port: int, key: str, target: Target, threads: int, limit: float, wait: float
    ) -> None:
        self._address, self._key, self._target = (host, port), key, target
        self._threads, self._limit, self._wait = threads, limit, wait
        self._session: Any = None
        self._kept: tuple[tuple[str, int], list[Any]] | None = None
        self._numbers: tuple[tuple[str, int], Numbers] | None = None
        self._description = ""

    def describe(self) -> dict[str, Any]:
        """What the device says of itself.

        Raises:
            LostError: there is none.
        """
        self._connect(again=False)
        found = device_plan.described(self._description)
        return {
            "machine": device_plan.processor_name(found),
            "architecture": found.get("machine", ""),
            "cpus": int(found.get("cpus", 1)),
            "features": sorted(parse_cpuinfo(self._description)),
        }

    def measure(self, trial: Trial) -> dict[str, Any]:
        """An outcome, as JSON, and the load of the device.

        Raises:
            LostError: the device was, and no other came in time.
        """
        with tempfile.TemporaryDirectory() as folder:
            library = build_device_library(trial.problem, trial.configs, Path(folder) / "candidates.so")
            if library.refused:
                return {"load": None, "outcome": asdict(next(iter(library.refused.values())))}
            for attempt in (0, 1):
                self._connect(again=True)
                try:
                    return self._measure(trial, library)
                except Exception as error:
                    # Of what class depends on what broke, and on the version of TVM.
                    why = last_line(error)
                    self._session = self._kept = None
                    if attempt:
                        return {
                            "load": None,
                            "outcome": asdict(Failed("died", f"the session ended twice: {why}")),
                        }
        raise AssertionError

    def _measure(self, trial: Trial, library: DeviceLibrary) -> dict[str, Any]:
        chosen = list(library.kernels.values())
        x, expected, allowed, *weights = self._operands(trial)
        plan = device_plan.plan_of(
            chosen,
            trial.rows,
            trial.checked_rows,
            threads=self._threads,
            limit=self._limit,
            seconds=trial.seconds,
        )
        times = self._send(device_plan.room_for_times(chosen, trial.rows))
        status = self._send(device_plan.room_for_status())
        module = load_library(self._session, library.path)
        module["measure"](self._send(plan), x, expected, allowed, times, status, *weights)
        outcome = device_plan.outcome_of(status.numpy(), times.numpy(), self._limit)
        load = device_plan.described(self._describe(module)).get("load")
        return {"load": None if load is None else max(0.0, float(load) - self._threads), "outcome": outcome}

    def _operands(self, trial: Trial) -> list[Any]:
        """Of the trial's problem; those of the last one stay on the device."""
        key = trial.problem.to_json(), max(*trial.rows, *trial.checked_rows)
        if self._numbers is None or self._numbers[0] != key:
            self._numbers = key, Numbers(trial.problem, key[1])
            self._kept = None
        if self._kept is None:
            numbers = self._numbers[1]
            arrays = (numbers.x, *numbers.device_arrays(), *numbers.packed)
            self._kept = key, [self._send(np.ascontiguousarray(array)) for array in arrays]
        return self._kept[1]

    def _send(self, array: Any) -> Any:
        return tvm.runtime.tensor(array, self._session.cpu(0))

    def _describe(self, module: Any) -> str:
        text = self._send(np.zeros(device_plan.DESCRIPTION_BYTES, np.uint8))
        module["describe"](text)
        return device_plan.text_of(text.numpy().tobytes())

    def _connect(self, *, again: bool) -> None:
        """Have a session: at once, or after the wait where a device is busy or was there before."""
        deadline = time.monotonic() + self._wait
        while self._session is None:
            tracker = self._tracker()
            try:
                free, others = self._free(tracker)
                if free:
                    self._session = tracker.request(self._key, max_retry=1)
                    self._description = self._first_words()
                    return
                why = "every device of this key is busy"
                if free is None:
                    why = f"no device of this key is there; the keys are {', '.join(others) or 'none'}"
            except (AwqTvmError, LostError) as error:
                self._session = None
                if isinstance(error, AwqTvmError) or not again:
                    raise
                why = str(error)
            except Exception as error:
                free, why, self._session = 0, last_line(error), None
            finally:
                tracker.close()
            if time.monotonic() > deadline or (free is None and not again):
                raise LostError(why)
            time.sleep(0.3)

    def _first_words(self) -> str:
        """What the device says of itself."""
        with tempfile.TemporaryDirectory() as folder:
            path = build_describer(self._target, Path(folder) / "describer.so")
            try:
                module = load_library(self._session, path)
            except Exception as error:
                raise LostError(
                    f"it cannot load a library for {self._target.name}: {last_line(error)}"
                ) from error
            return self._describe(module)

    def _tracker(self) -> Any:
        host, port = self._address
        try:
            socket.create_connection(self._address, _ANSWER_S).close()
            return rpc.connect_tracker(host, port)
        except Exception as error:
            raise LostError(f"no tracker answers at {host}:{port}: {last_line(error)}") from error

    def _free(self, tracker: Any) -> tuple[int | None, list[str]]:
        """How many devices of the key are free, None where there are none at all; and the keys that there are."""
        summary = tracker.summary()
        keys = sorted({str(one["key"]).removeprefix("server:") for one in summary["server_info"]})
        if self._key not in keys:
            return None, keys
        return int(summary["queue_info"].get(self._key, {}).get("free", 0)), keys


def serve(device: RpcDevice, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more questions."""
    for line in requests:
        answer: dict[str, Any]
        try:
            answer = (
                device.describe() if line.strip() == b"{}" else device.measure(Trial.from_json(line.decode()))
            )
        except LostError as error:
            answer = {"lost": str(error)}
        except AwqTvmError as error:
            answer = {"lost": f"{error.what}: {error.why}"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Serve the process that started this one."""
    host, port, key, target, threads, limit, wait, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    # What TVM prints must not reach the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # TVM's client of the tracker waits for ever by itself.
    socket.setdefaulttimeout(_ANSWER_S)
    chip = Target.from_dict(json.loads(target))
    device = RpcDevice(host, int(port), key, chip, int(threads), float(limit), float(wait))
    serve(device, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
