"""Our search beside TVM's MetaSchedule: the same linears, as many measured candidates, the same clock.

    python benchmarks/tuning_equal.py search FOLDER --trials 32     both searches; goes on where it was
    python benchmarks/tuning_equal.py table FOLDER                  what they found, in turns; stop everything else

MetaSchedule evolves schedules of the plain operation, ours chooses among configurations of our kernels. In both
searches a few candidates are timed at once, in turns with our default, with weights from memory, by one thread's own
clock, and only the ratio to the default counts, so that other work on the machine matters little. ``table`` times
default, ours and MetaSchedule's best anew, and says how much faster ours is. A linear is KxN:M:bits:group size.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import tuning_stock
import tvm
from tuning import problem_of

from awq_tvm.compile.tuning.local import LocalMeasurer
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.search import search_part
from awq_tvm.targets import Target, detect

LINEARS = tuple(
    f"{shape}:{rows}:4:64" for shape in ("576x576", "576x3072", "1536x576") for rows in (1, 16, 128)
)


def read(linear: str, target: Target) -> tuple[Problem, int]:
    """The problem and M."""
    shape, rows, bits, group_size = linear.split(":")
    k, n = map(int, shape.split("x"))
    return problem_of(target, k, n, int(bits), int(group_size)), int(rows)


def searched(linear: str, target: Target, trials: int, library: Path) -> dict[str, Any]:
    """What both searches find with so many candidates."""
    problem, rows = read(linear, target)
    part = next(
        p for p in problem.parts if p.first_rows <= rows and (p.last_rows is None or rows <= p.last_rows)
    )
    start = time.monotonic()
    with LocalMeasurer(target, limit=300) as measurer:
        mine = search_part(problem, replace(part, timed_rows=(rows,)), measurer, trials=trials)
    seconds = time.monotonic() - start
    best = min((place for place in mine.ratios), key=lambda place: mine.ratios[place], default=0)
    ours = {
        "config": mine.config(),
        "ratio": min(1.0, mine.ratios.get(best, 1.0)),
        "measured": mine.trials - len(mine.failed),
        "failed": len(mine.failed),
        "seconds": seconds,
        "space": len(part.configs),
    }
    stock = tuning_stock.search(tuning_stock.Clock(problem, rows), problem, trials, library)
    return {"linear": linear, "trials": trials, "ours": ours, "stock": asdict(stock)}


def timed(found: dict[str, Any], target: Target, library: Path, seconds: float) -> list[float]:
    """Microseconds of our default, of ours and of MetaSchedule's."""
    problem, rows = read(found["linear"], target)
    clock = tuning_stock.Clock(problem, rows)
    kernel = tvm.runtime.load_module(str(library))["main"]
    others = [clock.ours(found["ours"]["config"]), clock.stock.calls(kernel)]
    return [1e6 * time for time in clock.beside_default(others, seconds)]


def print_table(rows: Sequence[tuple[dict[str, Any], list[float]]]) -> None:
    """A line for each linear, and the ratios together."""
    print(
        "| K x N, M | candidates | default us | ours us | MetaSchedule us | ours faster by | search, ours "
        "| MetaSchedule |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for found, (default, ours, stock) in rows:
        shape, m, *_ = found["linear"].split(":")
        print(
            f"| {shape.replace('x', ' x ')}, {m} | {found['ours']['measured']} of {found['ours']['space']} and "
            f"{found['stock']['measured']} | {default:.1f} | {ours:.1f} | {stock:.1f} | {stock / ours:.1f} | "
            f"{found['ours']['seconds']:.0f} s | {found['stock']['seconds']:.0f} s |"
        )
    ratios = [stock / ours for _, (_, ours, stock) in rows]
    print(
        f"ours is {min(ratios):.1f} to {max(ratios):.1f} times as fast, {geometric_mean(ratios):.1f} in the mean; "
        f"MetaSchedule's cost model: {', '.join(sorted({found['stock']['cost_model'] for found, _ in rows}))}"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("search", "table"))
    parser.add_argument("folder", type=Path, help="of what the searches found")
    parser.add_argument(
        "linears", nargs="*", help="KxN:M:bits:group size; by default three of SmolLM2 at 1, 16, 128"
    )
    parser.add_argument("--trials", type=int, default=32, help="candidates that each search measures at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing each at last")
    options = parser.parse_args()
    if packages := tuning_stock.missing():
        raise SystemExit(f"not run: TVM's MetaSchedule needs {', '.join(packages)}")
    os.environ["TVM_NUM_THREADS"] = "1"
    target = detect()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for linear in options.linears or LINEARS:
        file = options.folder / f"{linear.replace(':', '-')}.json"
        library = file.with_suffix(".so").resolve()
        if options.what == "search" and not file.exists():
            file.write_text(json.dumps(searched(linear, target, options.trials, library)), encoding="utf-8")
            print(file.read_text(encoding="utf-8"), flush=True)
        elif options.what == "table" and file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            rows.append((found, timed(found, target, library, options.seconds)))
    if rows:
        print_table(rows)


if __name__ == "__main__":
    main()
