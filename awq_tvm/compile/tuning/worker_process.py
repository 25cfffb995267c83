"""A process that answers lines with lines, within a time, and is started again if it should be lost."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class WorkerProcess:
    """One of our modules as a child process; ``stop`` it in the end.

    Args:
        module: that ``python -m`` runs; it answers each line of its standard input with one line.
        arguments: of the module.
        threads: of TVM's pool in it.
    """

    def __init__(self, module: str, arguments: Sequence[str], *, threads: int = 1) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - as long-lived as this object

    @property
    def pid(self) -> int | None:
        """Of the process, None where none runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def ask(self, line: str, seconds: float) -> str:
        """The answer to a line; what is no whole line means that the process was lost, and ended here.

        Args:
            line: without its line break.
            seconds: to wait for the answer; then the process is ended.
        """
        process = self._running()
        assert process.stdin is not None
        answer = b""
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answer = self._answer(process, time.monotonic() + seconds)
        except BrokenPipeError:
            pass
        except BaseException:
            self.end()  # what it answers now would be taken for the answer to the next line
            raise
        if not answer.endswith(b"\n"):
            self.end()
        return answer.decode(errors="replace")

    def last_words(self) -> str:
        """The last line that it wrote on standard error."""
        size = self._talk.seek(0, os.SEEK_END)
        self._talk.seek(max(0, size - 400))
        lines = self._talk.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def end(self) -> None:
        """End the process and all that it started; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def stop(self) -> None:
        """End it for good."""
        self.end()
        self._talk.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._talk,
                env=_environment(self._threads),
                # ^C is for the parent, which keeps what was found.
                start_new_session=True,
            )
        return self._process

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """A line, or what there is of one when the process ends or its time is up."""
        assert process.stdout is not None
        descriptor, content = process.stdout.fileno(), b""
        while not content.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                break
            content += part
        return content


def _environment(threads: int) -> dict[str, Any]:
    """One thread for NumPy, which must not have started others when the worker forks."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    ours = {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **one, **ours}
