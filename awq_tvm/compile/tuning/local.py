"""Measure on this machine, through a worker process that is started again if it should be lost."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from awq_tvm.compile.tuning.measurement import Failed, Outcome, Trial, outcome_from_json
from awq_tvm.errors import TargetError, UsageError
from awq_tvm.targets import Target, detect, missing_features

LIMIT_S = 60.0
"""For building, checking and timing the candidates of a trial."""

_GRACE_S = 120.0
"""More than importing TVM and making the operands of a large linear takes."""


class LocalMeasurer:
    """This machine; use in a ``with`` block.

    Args:
        target: what candidates are compiled for; this machine must be able to run it.
        threads: that kernels run on.
        limit: seconds for a trial.
        modules: with schedule families of their own, imported where candidates are built.

    Raises:
        TargetError: this machine cannot run the target's code.
        UsageError: there are not so many cores.

    Attributes:
        machine: the processor's name for itself.
    """

    name: Literal["local"] = "local"

    def __init__(
        self, target: Target, *, threads: int = 1, limit: float = LIMIT_S, modules: Sequence[str] = ()
    ) -> None:
        here = detect()
        lacking = missing_features(target, here)
        if target.kind != "cpu" or target.family != here.family or lacking:
            raise TargetError(
                f"This machine cannot run code for {target.name}",
                where="--target",
                why=f"it lacks {', '.join(lacking)}" if lacking else f"it is {here.name}",
                fix="tune on the hardware itself",
            )
        if not 1 <= threads <= (here.cores or 1):
            raise UsageError(
                f"{threads} threads cannot be measured",
                where="--threads",
                why=f"there are {here.cores} cores",
            )
        self.threads, self.limit, self.machine = threads, limit, processor_name()
        self._modules = tuple(modules)
        self._worker: subprocess.Popen[bytes] | None = None
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - as long-lived as this object

    def __enter__(self) -> LocalMeasurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._talk.close()

    def measure(self, trial: Trial) -> Outcome:
        """See ``Measurer.measure``."""
        worker = self._running()
        assert worker.stdin is not None
        try:
            worker.stdin.write(trial.to_json().encode() + b"\n")
            worker.stdin.flush()
            answer = self._answer(worker)
        except BrokenPipeError:
            answer = b""
        except BaseException:
            self._stop()  # what it answers now would be taken for the answer to the next trial
            raise
        try:
            return outcome_from_json(answer.decode())
        except ValueError:
            self._stop()
            return Failed("died", f"the worker was lost: {self._last_words()}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self._stop()
            self._worker = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "awq_tvm.compile.tuning.worker",
                    str(self.limit),
                    str(self.threads),
                    *self._modules,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._talk,
                env=_environment(self.threads),
                # ^C is for the parent, which keeps what was found.
                start_new_session=True,
            )
        return self._worker

    def _answer(self, worker: subprocess.Popen[bytes]) -> bytes:
        """A line, or what there is of one when the worker ends or takes much longer than a trial may."""
        assert worker.stdout is not None
        descriptor, content = worker.stdout.fileno(), b""
        deadline = time.monotonic() + self.limit + _GRACE_S
        while not content.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                break
            content += part
        return content

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _last_words(self) -> str:
        size = self._talk.seek(0, os.SEEK_END)
        self._talk.seek(max(0, size - 400))
        lines = self._talk.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def processor_name() -> str:
    """What the operating system calls the processor, at most 512 characters."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()[:512]
    except OSError:
        pass
    return (platform.processor() or platform.machine())[:512]


def _environment(threads: int) -> dict[str, Any]:
    """One thread for NumPy, which must not have started others when the worker forks."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    ours = {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **one, **ours}
