"""The one event that long work reports through; how it is drawn is the caller's affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """Where a long piece of work stands.

    Attributes:
        stage: short name of the stage, for example "calibrate", "block" or "build"; one bar a stage is drawn.
        done: units finished in this stage, 0 to total.
        total: units in this stage; 0 where the number is not known.
        message: what is being done now, one line; may be empty.
    """

    stage: str
    done: int
    total: int
    message: str = ""


ProgressCallback = Callable[[ProgressEvent], None]


def ignore_progress(event: ProgressEvent) -> None:
    """Take an event and draw nothing: the default of a library call."""
