"""Measure on this machine, through a worker process that is started again if it should be lost."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from awq_tvm.compile.tuning.device_plan import described
from awq_tvm.compile.tuning.measurement import Failed, Outcome, Trial, outcome_from_json
from awq_tvm.compile.tuning.reach import way_to_measure
from awq_tvm.compile.tuning.worker_process import WorkerProcess
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
                fix=way_to_measure(target),
            )
        if not 1 <= threads <= (here.cores or 1):
            raise UsageError(
                f"{threads} threads cannot be measured",
                where="--threads",
                why=f"there are {here.cores} cores",
            )
        self.threads, self.limit, self.machine = threads, limit, processor_name()
        arguments = (str(limit), str(threads), *modules)
        self._worker = WorkerProcess("awq_tvm.compile.tuning.worker", arguments, threads=threads)

    def __enter__(self) -> LocalMeasurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.stop()

    def load(self) -> float:
        """See ``Measurer.load``."""
        return max(0.0, os.getloadavg()[0] - self.threads)

    def measure(self, trial: Trial) -> Outcome:
        """See ``Measurer.measure``."""
        answer = self._worker.ask(trial.to_json(), self.limit + _GRACE_S)
        try:
            return outcome_from_json(answer)
        except ValueError:
            self._worker.end()
            return Failed("died", f"the worker was lost: {self._worker.last_words()}")


def processor_name() -> str:
    """What the operating system calls the processor, at most 512 characters."""
    try:
        found = described(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = {}
    if "model name" in found:
        return found["model name"][:512]
    return (platform.processor() or platform.machine())[:512]
