"""How candidates are timed beside each other, with a clock that their calls move."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tvm_ffi

from awq_tvm.compile.tuning import timing

COPIES = 60


def test_no_candidate_reads_what_another_has_just_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in front would warm the last level cache for those behind, whatever their speeds."""
    speeds, now, log = (1e-5, 3e-5, 2e-5), [0.0], list[tuple[int, int]]()

    def call(contender: int, copy: int) -> None:
        now[0] += speeds[contender]
        log.append((contender, copy))

    calls = [[partial(call, contender, copy) for copy in range(COPIES)] for contender in range(len(speeds))]
    lengths = {calls[contender][0]: length for contender, length in enumerate((6, 2, 3))}
    monkeypatch.setattr(timing, "_length", lambda calls, clock: lengths[calls[0]])
    found = timing.in_turns(calls, 0.01, lambda: now[0])
    assert found == pytest.approx(list(speeds))
    counts = [sum(contender == one for one, _ in log) for contender in range(len(speeds))]
    assert len(set(counts)) == 1, "all at the same pace"
    assert counts[0] > 3 * COPIES
    last = dict[int, int]()
    for contender, copy in log:
        for other, place in last.items():
            apart = (copy - place) % COPIES
            assert other == contender or min(apart, COPIES - apart) >= COPIES // len(speeds) - 2 * 3
        last[contender] = copy


def test_few_copies_are_shared() -> None:
    now = [0.0]

    def call() -> None:
        now[0] += 1e-3

    assert timing.in_turns([[call], [call], [call]], 0.01, lambda: now[0]) == pytest.approx([1e-3] * 3)


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("g++")), reason="needs Linux and g++")
def test_nor_does_one_on_a_device(tmp_path: Path) -> None:
    """The same of what times candidates over RPC and in packs: weights come back when all others were read."""
    program, package = tmp_path / "check", Path(tvm_ffi.__file__).parent
    source = Path(__file__).parents[1] / "support" / "device_times_check.cc"
    libraries = [package / "lib" / "libtvm_ffi.so", f"-Wl,-rpath,{package / 'lib'}"]
    subprocess.run(
        ["g++", "-std=c++17", "-O1", f"-I{package / 'include'}", "-o", program, source, *libraries],
        check=True,
    )
    done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60)
    log = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    # Before they take turns, each is called for a while to see how long it takes.
    settled = log[len(log) // 2 :]
    assert {contender for contender, _ in settled} == {0, 1, 2}
    last, between = dict[int, int](), list[int]()
    for number, (_, copy) in enumerate(settled):
        between += [number - last[copy]] if copy in last else []
        last[copy] = number
    assert len(between) > COPIES
    assert min(between) >= COPIES // 2, "another has just read it"
