"""How much memory this process holds and has held."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

_STATM = Path("/proc/self/statm")
_SECONDS_BETWEEN_LOOKS = 0.05


def peak_memory() -> int:
    """The most memory (resident set) that this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def memory_of(process: int) -> dict[str, int]:
    """What the system says of the memory of any process at this moment.

    Args:
        process: its id.

    Returns:
        By the names of /proc (VmHWM, VmRSS, RssAnon, RssFile ...) in kB; empty where there is no /proc or no process.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {name.removesuffix(":"): int(size) for name, size, _unit in fields}


def give_back_freed() -> None:
    """Hand memory that was freed back to the system; the C library of Linux may keep hundreds of megabytes of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryWatch:
    """The peak of this process's memory over parts of its life; use it in a `with`.

    The system keeps only the peak of the whole life. Where that rises in a part it is the part's own; elsewhere a
    thread looks at the memory 20 times a second, so a shorter peak may be missed. Where the system has no
    /proc, the peak is that of the whole life.
    """

    def __init__(self) -> None:
        self._highest, self._life = 0, peak_memory()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def take_peak(self) -> int:
        """The peak since the last call, or since the start, in bytes."""
        before, self._life = self._life, peak_memory()
        highest, self._highest = max(self._highest, _resident()), 0
        return self._life if self._life > before else highest

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            self._highest = max(self._highest, _resident())


def _resident() -> int:
    """Memory at this moment, in bytes."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory()
