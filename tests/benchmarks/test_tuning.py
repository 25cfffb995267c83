"""The benchmark of tuning: its searches see the times that they are given, and the table says what was measured."""

from __future__ import annotations

import pytest

from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.targets import resolve
from benchmarks.tuning import (
    TABLE,
    Row,
    drawn,
    evolved,
    ours,
    print_searches,
    print_table,
    problem_of,
    ranked,
)

PROBLEM = problem_of(resolve("x86-64-v4-vnni"), 576, 960, 4, 64)
PART = PROBLEM.parts[0]


def times_towards(blocks: int, ahead: int) -> list[float]:
    """Fastest for one candidate, slower with each step away from it."""
    tiles = [to_fields(config, PART.fields)["one_row"] for config in PART.configs]
    found = [abs(tile["blocks"] - blocks) + abs(tile["ahead"] - ahead) / 2048 for tile in tiles]
    return [(1 + time) / (1 + found[0]) for time in found]


def test_a_search_knows_no_time_that_it_did_not_ask_for() -> None:
    times = times_towards(6, 0)
    assert ours(PROBLEM, PART, times, 1) == 1.0
    assert ours(PROBLEM, PART, times, 24) == pytest.approx(min(times))
    assert ours(PROBLEM, PART, times, len(times)) == pytest.approx(min(times))
    assert ranked(times, len(times)) == min(times)
    assert min(times) < drawn(times, 8) < 1.0
    assert drawn(times, len(times)) == pytest.approx(min(times))
    assert min(times) < evolved(PROBLEM, PART, times, 16) < drawn(times, 8), "it follows what was fast"
    assert evolved(PROBLEM, PART, times, len(times)) == pytest.approx(min(times))


def test_what_lies_beside_the_default_is_tried_where_the_likely_are_slow() -> None:
    default = to_fields(PART.configs[0], PART.fields)["one_row"]
    tiles = [to_fields(config, PART.fields)["one_row"] for config in PART.configs]
    beside = [i for i, tile in enumerate(tiles) if sum(tile[name] != default[name] for name in tile) == 1]
    for fast in beside:
        times = [1.0, *(0.9 if i == fast else 1.5 + i / 1000 for i in range(1, len(tiles)))]
        assert ours(PROBLEM, PART, times, len(beside) + 6) == 0.9


def test_the_table_of_searches(capsys: pytest.CaptureFixture[str]) -> None:
    print_searches(PROBLEM, PART, times_towards(6, 0))
    lines = capsys.readouterr().out.splitlines()
    assert f"{len(PART.configs)} candidates" in lines[0]
    assert len(lines) == 7
    assert all(line.count("|") == 6 for line in lines[1:])


def test_the_table_of_linears(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({(k, n, bits, size) for _, k, n, bits, size in TABLE}) == 12
    rows = [Row("one", "8x8", m, 12.0, tuned) for m, tuned in ((1, 10.0), (4, 12.0), (128, 6.0))]
    print_table(rows)
    out = capsys.readouterr().out
    assert "| one | 8x8 | 12.0 | 10.0 | 1.20 | 12.0 | 12.0 | 1.00 | 12.0 | 6.0 | 2.00 |" in out
    assert "M = 4: gain 1.00 in the median, 1.00 to 1.00; 1 of 1 defaults within 15% of the tuned" in out
