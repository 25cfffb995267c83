"""Peaks of memory belong to the part of the run in which they were."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from awq_tvm.memory import MemoryWatch, memory_of, peak_memory

_BYTES = 200_000_000


def test_a_peak_is_that_of_its_part():
    """The first part is the largest; what it frees does not count in the second."""
    with MemoryWatch() as watch:
        before = watch.take_peak()
        large = np.ones(_BYTES, dtype=np.uint8)
        time.sleep(0.2)
        del large
        with_large, without = watch.take_peak(), watch.take_peak()
    assert with_large > before + 0.9 * _BYTES
    assert without < with_large - 0.9 * _BYTES
    assert peak_memory() >= with_large


def test_the_thread_ends():
    with MemoryWatch() as watch:
        assert watch._thread.is_alive()
    assert not watch._thread.is_alive()


def test_memory_of_this_process_and_of_none():
    now = memory_of(os.getpid())
    if not now:
        pytest.skip("no /proc")
    assert 0 < now["RssAnon"] + now["RssFile"] <= now["VmRSS"] <= now["VmHWM"]
    assert memory_of(2**30) == {}
