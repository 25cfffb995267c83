"""How much memory `generate` takes beside the bundle, and how long until the first word.

    python -m benchmarks.memory_generate BUNDLE
    python -m benchmarks.memory_generate BUNDLE --threads 2 --repetitions 9 --bar 60

Runs the command a user types, in a process of its own each time. Prints one JSON line: sizes in MiB, medians of
times in seconds from the start of the process, `cpu_seconds` without those it waited for a processor. `peak` is the
most that was resident; `own` and `mapped` are its two parts at that moment: the process's own memory, and pages of
mapped files (weights and libraries) that the system may take back. Ends with 1 if the peak is more than --bar MiB
above the bundle's size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_tvm.memory import memory_of

ROOT = Path(__file__).resolve().parent.parent
_STATUS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


@dataclass(frozen=True, slots=True)
class Run:
    """One run; kB as the system counts them, and seconds."""

    peak: int
    own: int
    mapped: int
    first: float
    whole: float
    cpu: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--max-tokens", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--bar", type=float, help="MiB that the peak may be above the bundle's size")
    options = parser.parse_args(arguments)
    runs = [run(options) for _ in range(options.repetitions)]
    highest = max(runs, key=lambda each: each.peak)
    bundle = sum(path.stat().st_size for path in options.bundle.iterdir()) / 2**20
    found = {
        "bundle": bundle,
        "peak": highest.peak / 1024,
        "above_bundle": highest.peak / 1024 - bundle,
        "own": highest.own / 1024,
        "mapped": highest.mapped / 1024,
    }
    times = {
        "first_text_seconds": statistics.median(each.first for each in runs),
        "seconds": statistics.median(each.whole for each in runs),
        "cpu_seconds": statistics.median(each.cpu for each in runs),
    }
    print(
        json.dumps(
            {
                "threads": options.threads,
                **{name: round(value, 1) for name, value in found.items()},
                **{name: round(value, 3) for name, value in times.items()},
            }
        )
    )
    return int(options.bar is not None and found["above_bundle"] > options.bar)


def run(options: argparse.Namespace) -> Run:
    """Generate once and watch the process.

    Raises:
        SystemExit: it failed; what it said went to standard error.
    """
    command = [sys.executable, "-m", "awq_tvm", "generate", str(options.bundle), "--prompt", options.prompt]
    command += ["--max-tokens", str(options.max_tokens), "--threads", str(options.threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started, used = time.monotonic(), _cpu_of_children()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        watch = threading.Thread(target=_watch, args=(process, seen := dict.fromkeys(_STATUS, 0)))
        watch.start()
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.monotonic() - started
        process.stdout.read()
        process.wait()
        watch.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    whole, cpu = time.monotonic() - started, _cpu_of_children() - used
    return Run(seen["VmHWM"], seen["RssAnon"], seen["RssFile"], first, whole, cpu)


def _cpu_of_children() -> float:
    """Seconds of processor time, all threads together, of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _watch(process: subprocess.Popen[bytes], seen: dict[str, int]) -> None:
    """Keep what the system said when most was resident, and the highest mark, which misses no moment."""
    while process.poll() is None:
        now = memory_of(process.pid)
        seen["VmHWM"] = max(seen["VmHWM"], now.get("VmHWM", 0))
        if now.get("VmRSS", 0) > seen["VmRSS"]:
            seen.update({name: now[name] for name in ("VmRSS", "RssAnon", "RssFile")})
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
