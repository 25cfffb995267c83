"""The process that measures candidates: ``python -m awq_tvm.compile.tuning.worker LIMIT_S THREADS [MODULE...]``.

It reads trials from standard input, one line of JSON each, and answers on standard output. It imports TVM and makes
the operands once, and then forks a child for every trial, so that a candidate that hangs, aborts or writes where it
should not takes nothing with it but its own child, which is killed with all that it started when the time is up.
Nothing is computed here that would start a thread, and so forking is safe. MODULE is imported first: a module
with schedule families of its own, which register themselves.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from typing import BinaryIO

from awq_tvm.compile.tuning.attention_numbers import AttentionNumbers
from awq_tvm.compile.tuning.measurement import Failed, Outcome, Trial, outcome_from_json, outcome_to_json
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.compile.tuning.timing import Operands, run_trial
from awq_tvm.schedules.attention.rule import AttentionSpec

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_MAX_ANSWER_BYTES = 1 << 16


class Worker:
    """Forks a child for each trial.

    Args:
        limit: seconds that a trial may take.
        threads: that a kernel may use; the child stays on as many CPUs.
    """

    def __init__(self, limit: float, threads: int) -> None:
        self.limit, self.threads = limit, threads
        self._kept: tuple[tuple[str, int], Operands] | None = None

    def measure(self, trial: Trial) -> Outcome:
        """Run one trial in a child and wait for it."""
        operands = self._operands(trial)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._run_child(trial, operands, writer)
        os.close(writer)
        try:
            answer = _read_until(reader, time.monotonic() + self.limit)
        finally:
            os.close(reader)
            # It leads a process group of its own; it may also have ended already.
            for kill in (os.killpg, os.kill):
                try:
                    kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            _, status = os.waitpid(child, 0)
        if answer is None:
            return Failed("slow", f"no result after {self.limit:g} s")
        try:
            return outcome_from_json(answer.decode())
        except ValueError:
            return Failed("died", _how_it_ended(status))

    def _operands(self, trial: Trial) -> Operands:
        """Of the trial's problem; those of the last one are kept."""
        key = trial.problem.to_json(), max(*trial.rows, *trial.checked_rows)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            spec = trial.problem.spec
            if isinstance(spec, AttentionSpec):
                self._kept = key, Operands(AttentionNumbers(spec, key[1]))
            else:
                self._kept = key, Operands(Numbers(trial.problem, key[1]))
        return self._kept[1]

    def _run_child(self, trial: Trial, operands: Operands, writer: int) -> None:
        """Measure, answer, and end without running anything of the parent's."""
        code = 1
        try:
            os.setpgid(0, 0)
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _pin(self.threads)
            gc.disable()
            os.write(
                writer, outcome_to_json(run_trial(trial, operands, self.threads)).encode()[:_MAX_ANSWER_BYTES]
            )
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def _pin(threads: int) -> None:
    """Stay on the last CPUs that are allowed: the first ones serve most interrupts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """All that is written until the other end is closed; None if that does not happen in time."""
    content = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, _MAX_ANSWER_BYTES)
        if not part:
            return content
        content += part
        if len(content) > _MAX_ANSWER_BYTES:
            return b""


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"ended by {signal.Signals(number).name}"
    return f"ended with code {os.waitstatus_to_exitcode(status)}"


def serve(worker: Worker, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer trials until there are no more."""
    for line in requests:
        outcome = worker.measure(Trial.from_json(line.decode()))
        answers.write(outcome_to_json(outcome).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Serve the process that started this one."""
    limit, threads, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    # What a candidate prints must not reach the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Worker(float(limit), int(threads)), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
