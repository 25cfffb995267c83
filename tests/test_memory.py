"""Peaks of memory belong to the part of the run in which they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


CODE = """
import json, os, sys
import numpy, tokenizers
from awq_tvm.memory import give_back_code, memory_of

text = numpy.memmap(sys.argv[1], numpy.uint8, "r")
mine = numpy.memmap(sys.argv[1], numpy.uint8, "c")
mine[:4096] += 1
total = int(text.sum(dtype=numpy.int64)) + int(mine.sum(dtype=numpy.int64))
before = memory_of(os.getpid())
give_back_code()
after = memory_of(os.getpid())
equal = int(text.sum(dtype=numpy.int64)) + int(mine.sum(dtype=numpy.int64)) == total
print(json.dumps({"before": before, "after": after, "equal": equal, "mine": int(mine[0])}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are a file's")
def test_code_is_given_back_and_data_is_not(tmp_path, repository):
    """Half the pages of libraries that importing ran through go; nothing that was written does."""
    (tmp_path / "data").write_bytes(bytes(1 << 22))
    command = [sys.executable, "-c", CODE, str(tmp_path / "data")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=repository, timeout=60)
    said = json.loads(answer.stdout)
    before, after = said["before"], said["after"]
    data = 2 * 4096
    assert after["RssFile"] - data < 0.6 * (before["RssFile"] - data)
    assert after["RssAnon"] >= before["RssAnon"]
    assert said["equal"]
    assert said["mine"] == 1
