"""The thread that runs the scheduler."""

from __future__ import annotations

import threading

from awq_tvm.errors import AwqTvmError, ResourceError
from awq_tvm.serve.job import Job
from awq_tvm.serve.scheduler import Scheduler


class Worker:
    """Steps a scheduler as long as there is something to do; use it in a `with`.

    Args:
        scheduler: that nothing else steps.

    Attributes:
        failure: what ended the thread early; None while all is well.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.failure: AwqTvmError | None = None
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def __enter__(self) -> Worker:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it after the step it is in; jobs under way are told."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Take on a job.

        Raises:
            BusyError: too many are waiting.
            UsageError: it needs more than there is even when nothing else runs.
            ResourceError: the worker has ended.
        """
        if self.failure is not None or self._closing:
            raise self.failure or _ended()
        self.scheduler.submit(job)
        self._wake.set()

    def _run(self) -> None:
        reason: AwqTvmError = _ended()
        try:
            while not self._closing:
                # Cleared before the look: what comes after it sets the event again.
                self._wake.clear()
                if self.scheduler.idle:
                    self._wake.wait()
                else:
                    self.scheduler.step()
        except Exception as error:  # whatever the compiled program raised: answers cannot go on after it
            reason = self.failure = AwqTvmError(
                "The model failed and the server cannot go on.",
                why=f"{type(error).__name__}: {str(error)[:500]}",
                fix="start the server again; `python -m awq_tvm verify BUNDLE` checks the bundle",
            )
        finally:
            self._closing = True
            self.scheduler.close(reason)


def _ended() -> ResourceError:
    return ResourceError(
        "The server is shutting down.", why="it was told to end", fix="send the request again later"
    )
