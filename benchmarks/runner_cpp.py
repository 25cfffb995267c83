"""The runner in C++ beside the Python runtime on one bundle: start-up, and what a token costs.

    python -m benchmarks.runner_cpp RUNNER BUNDLE
    python -m benchmarks.runner_cpp runner/bin/awq_tvm_run BUNDLE --tokens 128 --repetitions 9

Runs `awq_tvm_run` and `python -m awq_tvm generate` by turns, each in a process of its own and on one thread. Prints
one JSON line of medians over the turns. `start` is a process that loads the bundle and generates one token, in
seconds of wall clock and of processor time; `rate` is tokens a second after the first, by the wall clock and by
processor time (a run of --tokens less a run of one). What else the machine does moves the clock more than the
processor time, so that decides: ends with 1 if the tokens differ, the runner's start is above --start-bar, or its
rate below --rate-bar times Python's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Run:
    """What a process printed, and the seconds it took."""

    found: dict[str, Any]
    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's figures of one turn: seconds, and tokens a second."""

    tokens: tuple[int, ...]
    start: float
    start_cpu: float
    rate: float
    rate_cpu: float


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(words: Sequence[str], tokens: int) -> Run:
    """Generate that many tokens."""
    command = [*words, "--max-tokens", str(tokens)]
    start, before = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wall, cpu = time.perf_counter() - start, _cpu_of_children() - before
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return Run(json.loads(done.stdout), wall, cpu)


def turn(words: Sequence[str], tokens: int) -> Turn:
    """One run that only starts and one that goes on."""
    first, whole = run(words, 1), run(words, tokens)
    ids = tuple(whole.found["token_ids"])
    times = whole.found.get("timings", whole.found)
    later = len(ids) - 1
    return Turn(ids, first.wall, first.cpu, later / times["decode_seconds"], later / (whole.cpu - first.cpu))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, print the line, and say by the exit code whether the bars were met."""
    options = _parser().parse_args(arguments)
    bundle, shared = str(options.bundle.resolve()), ("--json", "--threads", "1")
    sides = {
        "runner": (str(options.runner.resolve()), *shared, bundle, options.prompt),
        "python": (sys.executable, "-m", "awq_tvm", "generate", *shared, bundle, "--prompt", options.prompt),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(options.repetitions + 1):
        for name, words in sides.items():
            measured = turn(words, options.tokens)
            if number:  # the first turn fills the page cache
                turns[name].append(measured)
    found: dict[str, Any] = {"schema_version": 1}
    found["tokens_equal"] = len({one.tokens for side in turns.values() for one in side}) == 1
    for name, side in turns.items():
        for figure in ("start", "start_cpu", "rate", "rate_cpu"):
            found[f"{name}_{figure}"] = round(statistics.median(getattr(one, figure) for one in side), 3)
    found["rate_cpu_ratio"] = round(found["runner_rate_cpu"] / found["python_rate_cpu"], 3)
    print(json.dumps(found))
    met = found["runner_start_cpu"] <= options.start_bar and found["rate_cpu_ratio"] >= options.rate_bar
    return 0 if found["tokens_equal"] and met else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runner", type=Path, help="the program awq_tvm_run")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--start-bar", type=float, default=0.3, help="seconds of processor time")
    parser.add_argument("--rate-bar", type=float, default=1.0, help="times Python's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
