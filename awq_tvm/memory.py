"""How much memory this process holds and has held."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

_STATM = Path("/proc/self/statm")
_SMAPS = Path("/proc/self/smaps")
# A mapping's first line: from, to, rights, and an inode that is not 0, which means a file.
_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (r-[-x]p) \S+ \S+ [1-9]")
_DONT_NEED = 4
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


def give_back_code() -> None:
    """Let go of the pages of program files (code and constants) that are mapped, on Linux.

    Starting runs through tens of megabytes of libraries of which a loop later needs a few. Their pages are the
    system's copy of the files, so those that are needed again come back without a disk, where nothing else pressed
    them out meanwhile. Mappings that may be written, and those with a page that was, are left alone.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    mapping = None
    try:
        # Line by line: the whole text is as large as some of what goes.
        with _SMAPS.open("rb") as lines:
            for line in lines:
                if line.startswith(b"Anonymous:"):
                    if mapping is not None and line.split()[1] == b"0":
                        start, end = int(mapping[1], 16), int(mapping[2], 16)
                        advise(start, end - start, _DONT_NEED)
                elif line[:1] in b"0123456789abcdef":
                    mapping = _MAPPING.match(line)
    except OSError:
        return  # a system without /proc


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
