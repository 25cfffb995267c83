"""Progress of long work: bars with the time left and peak memory on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from awq_tvm.cli.output import in_bytes, say
from awq_tvm.memory import peak_memory
from awq_tvm.progress import ProgressEvent

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Draws events on standard error; use in a `with` block and hand `display.update` to the work.

    Args:
        quiet: draw nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, tuple[float, int]] = {}
        self._start = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bars = Progress(
                TextColumn("{task.fields[stage]}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[memory]} {task.fields[message]}", markup=False),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, event: ProgressEvent) -> None:
        """Draw an event."""
        if self._quiet:
            return
        if self._bars is None:
            self._line(event)
            return
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task("", stage=event.stage, memory="", message="")
        self._bars.update(
            self._tasks[event.stage],
            completed=event.done,
            total=event.total or None,
            memory=f"peak {in_bytes(peak_memory())}",
            message=event.message,
        )

    def _line(self, event: ProgressEvent) -> None:
        """Say where a stage stands: at its start and end, and every ten seconds between."""
        now = time.monotonic()
        last, done = self._said.get(event.stage, (-_SECONDS_BETWEEN_LINES, -1))
        finished = 0 < event.total <= event.done
        if done == event.done or (now - last < _SECONDS_BETWEEN_LINES and not finished):
            return
        self._said[event.stage] = (now, event.done)
        count = f"{event.done}/{event.total}" if event.total else str(event.done)
        memory = in_bytes(peak_memory())
        text = f"[{now - self._start:7.1f} s] {event.stage} {count}  {event.message}".rstrip()
        say(f"{text}  (peak {memory})")
