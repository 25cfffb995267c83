"""How candidates are timed beside each other, with a clock that their calls move."""

from __future__ import annotations

from functools import partial

import pytest

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
