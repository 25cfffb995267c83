"""What goes to a device with a trial and what comes back; NumPy alone, since packs carry this file to devices.

The other side of it is ``native/device_timer.cc``, which is linked into every library of candidates.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ERROR_ALLOWED = 1e-5
"""Of y, relative to sum(|x||W|); kernels reach 3e-7."""

COLD_BYTES = 256 * 2**20
"""So many bytes of weights are walked through between two uses of the same: more than usual caches hold."""

MOST_COPIES = 2048
"""A weight of less than 128 KiB is not worth making more copies of."""

DESCRIPTION_BYTES = 1 << 20
_TIMED, _WRONG, _SIGNAL, _EXIT, _SLOW, _RAISED, _NO_MEMORY = range(7)


def plan_of(
    chosen: Sequence[int],
    rows: Sequence[int],
    checked_rows: Sequence[int],
    *,
    threads: int,
    limit: float,
    seconds: float,
) -> Array:
    """What ``measure`` of a library takes first.

    Args:
        chosen: numbers of the kernels, in the order of the answer.
        rows: each M to time.
        checked_rows: M at which numbers are checked first.
        threads: that kernels run on.
        limit: seconds for all of it.
        seconds: of timing, for each candidate.
    """
    numbers = (threads, round(1000 * limit), round(1e6 * seconds), COLD_BYTES, MOST_COPIES)
    counts = (len(chosen), len(rows), len(checked_rows))
    return np.array([*numbers, *counts, *chosen, *rows, *checked_rows], np.int64)


def room_for_times(chosen: Sequence[int], rows: Sequence[int]) -> Array:
    """Where ``measure`` writes seconds: [M, candidate, cold and hot]."""
    return np.full((len(rows), len(chosen), 2), np.nan)


def room_for_status() -> Array:
    """Where ``measure`` writes how it went."""
    return np.full(4, _NO_MEMORY, np.int64)


def outcome_of(status: Array, times: Array, limit: float) -> dict[str, Any]:
    """What ``measure`` found, as the JSON of an outcome.

    Args:
        status: as it came back.
        times: likewise.
        limit: seconds that were allowed.
    """
    kind, number, rows, error = map(int, status)
    if kind == _TIMED:
        micros = 1e6 * times.transpose(2, 1, 0)
        if np.isfinite(micros).all() and (micros > 0).all():
            return {"cold": micros[0].tolist(), "hot": micros[1].tolist()}
        return {"kind": "died", "why": "it came back with times that are none"}
    if kind == _WRONG:
        off = float("nan") if error < 0 else ERROR_ALLOWED * error / 1000
        return {"kind": "wrong", "why": f"off by {off:.2g} of sum(|x||W|) at M = {rows}"}
    if kind == _SLOW:
        return {"kind": "slow", "why": f"no result after {limit:g} s"}
    if kind == _SIGNAL:
        names = {int(known): known.name for known in signal.Signals}
        return {"kind": "died", "why": f"ended by {names.get(number, f'signal {number}')}"}
    if kind == _EXIT:
        return {"kind": "died", "why": f"ended with code {number}"}
    if kind == _RAISED:
        return {"kind": "died", "why": f"it raised an error at M = {rows}"}
    return {"kind": "died", "why": "there was no memory for it"}


def text_of(description: bytes) -> str:
    """The lines that ``describe`` of a library left."""
    return description.split(b"\0", 1)[0].decode(errors="replace")


def described(text: str) -> dict[str, str]:
    """The first value of every name in it: "machine", "system", "cpus", "load", "model name"."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def processor_name(found: Mapping[str, str]) -> str:
    """What the machine calls its processor or its board, at most 512 characters."""
    return (found.get("model name") or found.get("machine") or "unknown")[:512]
