"""What tuning gains over the defaults, and what its search is worth, on this machine; stop everything else first.

    python benchmarks/tuning.py table                       12 linears, default beside tuned, measured anew
    python benchmarks/tuning.py search 2048x3072:1:4:128    each search on the times of all its candidates at M = 1

``table`` compiles default and records side by side, checks their numbers, and times them in turns, weights from
memory: it measures anew what the records claim. ``search`` measures all candidates of a range of M once; every search
is then given the same times, so that nothing but the order in which it tries is compared. A linear is
KxN:M:bits:group size.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, mean, median
from typing import Literal

from awq_tvm.compile.tuning.choice import recorded_choice
from awq_tvm.compile.tuning.local import LocalMeasurer
from awq_tvm.compile.tuning.measurement import Measurer, Outcome, Timed, Trial
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.search import AT_ONCE, leaves, search_part
from awq_tvm.errors import UsageError
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.rule import Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, detect

TABLE = (
    ("SmolLM2-135M, gate and up", 576, 3072, 4, 64),
    ("SmolLM2-135M, down", 1536, 576, 4, 64),
    ("SmolLM2-135M, head", 576, 49152, 8, 64),
    ("Qwen2.5-0.5B, q, k, v", 896, 1152, 4, 128),
    ("Qwen2.5-0.5B, gate and up", 896, 9728, 4, 128),
    ("Qwen2.5-0.5B, down", 4864, 896, 4, 128),
    ("Llama-3.2-1B, q, k, v", 2048, 3072, 4, 128),
    ("Llama-3.2-1B, gate and up", 2048, 16384, 4, 128),
    ("Llama-3.2-1B, down", 8192, 2048, 4, 128),
    ("Llama-2-7B, output", 4096, 4096, 4, 128),
    ("Llama-2-7B, down", 11008, 4096, 4, 128),
    ("Llama-3-8B, q, k, v", 4096, 6144, 4, 128),
)
"""Of which model, K, N, bits and group size."""

ROWS = (1, 4, 128)
BUDGETS = (4, 8, 16, 32)
DRAWS = 500
"""Random searches that are averaged."""

FOUNDERS, CONTEST = 3, 3
"""Of an evolution: candidates drawn to begin with, and how many of those tried compete for having a child."""


@dataclass(frozen=True)
class Row:
    """A linear at one M.

    Attributes:
        name: of which model.
        shape: "KxN".
        rows: M.
        default: microseconds.
        tuned: likewise, with the records of its very shape.
    """

    name: str
    shape: str
    rows: int
    default: float
    tuned: float

    @property
    def gain(self) -> float:
        """How much faster the tuned one is."""
        return self.default / self.tuned


def problem_of(target: Target, k: int, n: int, bits: int, group_size: int) -> Problem:
    """The linear with int8 activations.

    Raises:
        UsageError: there is nothing to tune.
    """
    problem = Problem.of(MatmulSpec(k, n, bits, group_size, "float32", activations="int8"), target)
    if problem is None:
        raise UsageError(f"{k}x{n} has nothing to tune on {target.name}")
    return problem


def table_rows(target: Target, measurer: Measurer, records: Sequence[Path], seconds: float) -> list[Row]:
    """Measure all of ``TABLE``; linears without records of their own are left out."""
    chooser, _ = recorded_choice(target, records)
    found = []
    for name, k, n, bits, group_size in TABLE:
        problem = problem_of(target, k, n, bits, group_size)
        choice = chooser.choose(problem.family, problem.spec, target, problem.default)
        if choice.source != "tuned":
            print(f"no records of its own: {name}, {problem.title}: {choice.reason}")
            continue
        names = [field for part in problem.parts for field in part.fields]
        same = choice.config == problem.default
        configs = tuple(to_fields(config, names) for config in (problem.default, choice.config)[: 2 - same])
        outcome = measurer.measure(Trial(problem, configs, ROWS, ROWS, seconds))
        if not isinstance(outcome, Timed):
            raise SystemExit(f"{problem.title}: {outcome.kind}, {outcome.why}")
        for rows, default, tuned in zip(ROWS, outcome.cold[0], outcome.cold[-1], strict=True):
            found.append(Row(name, f"{k}x{n} w{bits} g{group_size}", rows, default, tuned))
    return found


def print_table(found: Sequence[Row]) -> None:
    """The table and what is asked of it."""
    print("| linear | K x N | " + " | ".join(f"M = {m}: default us | tuned us | gain" for m in ROWS) + " |")
    print("|---|---|" + "---|" * (3 * len(ROWS)))
    for shape in dict.fromkeys((row.name, row.shape) for row in found):
        mine = [row for row in found if (row.name, row.shape) == shape]
        cells = " | ".join(f"{row.default:.1f} | {row.tuned:.1f} | {row.gain:.2f}" for row in mine)
        print(f"| {shape[0]} | {shape[1]} | {cells} |")
    for m in ROWS:
        gains = [row.gain for row in found if row.rows == m]
        if gains:
            print(
                f"M = {m}: gain {median(gains):.2f} in the median, {min(gains):.2f} to {max(gains):.2f}; "
                f"{sum(gain <= 1.15 for gain in gains)} of {len(gains)} defaults within 15% of the tuned"
            )


@dataclass(frozen=True)
class Table:
    """A machine whose times are known: what one search sees of another's measurements.

    Attributes:
        times: microseconds by configuration, as text.
    """

    times: dict[str, float]
    name: Literal["local"] = "local"
    threads: int = 1
    machine: str = "a table"

    def load(self) -> float | None:
        """Of nothing."""
        return None

    def measure(self, trial: Trial) -> Outcome:
        """Look up."""
        found = tuple((self.times[repr(config)],) * len(trial.rows) for config in trial.configs)
        return Timed(found, found)


def all_times(problem: Problem, part: Part, measurer: Measurer, seconds: float) -> list[float]:
    """Time of every candidate by that of the default, in the order of the space; infinite where one fails."""
    fields = [to_fields(config, part.fields) for config in part.configs]
    times = [1.0]
    for first in range(1, len(fields), AT_ONCE):
        batch = fields[first : first + AT_ONCE]
        trial = Trial(problem, (fields[0], *batch), part.timed_rows, part.checked_rows, seconds)
        outcome = measurer.measure(trial)
        if isinstance(outcome, Timed):
            default, *others = (geometric_mean(cold) for cold in outcome.cold)
            times += [other / default for other in others]
        else:
            times += [float("inf")] * len(batch)
        print(f"{len(times)} of {len(fields)} candidates", end="\r", flush=True)
    return times


def ours(problem: Problem, part: Part, times: Sequence[float], trials: int) -> float:
    """The best that our search sees in so many trials, the default among them."""
    fields = [to_fields(config, part.fields) for config in part.configs]
    table = Table({repr(one): time for one, time in zip(fields, times, strict=True)})
    return min((1.0, *search_part(problem, part, table, trials=trials).ratios.values()))


def ranked(times: Sequence[float], trials: int) -> float:
    """The best of the first ones by the estimate alone."""
    return min(times[:trials])


def drawn(times: Sequence[float], trials: int) -> float:
    """The best of the default and random others, on average."""
    draw = random.Random(0)
    others = range(1, len(times))
    return mean(
        min(1.0, *(times[place] for place in draw.sample(others, min(trials - 1, len(others)))))
        for _ in range(DRAWS)
    )


def evolved(problem: Problem, part: Part, times: Sequence[float], trials: int) -> float:
    """The best that evolution sees, on average: a child differs in one field from the best of a few drawn parents."""
    draw = random.Random(0)
    fields = [leaves(to_fields(config, part.fields)) for config in part.configs]
    near = [
        [j for j, other in enumerate(fields) if sum(other[name] != one[name] for name in one) == 1]
        for one in fields
    ]

    def once() -> float:
        tried = {0, *draw.sample(range(1, len(times)), min(FOUNDERS, trials - 1, len(times) - 1))}
        while len(tried) < min(trials, len(times)):
            parents = draw.sample(sorted(tried), min(CONTEST, len(tried)))
            parent = min(parents, key=lambda place: times[place])
            children = [place for place in near[parent] if place not in tried]
            tried.add(draw.choice(children or [place for place in range(len(times)) if place not in tried]))
        return min(times[place] for place in tried)

    return mean(once() for _ in range(DRAWS))


def print_searches(problem: Problem, part: Part, times: Sequence[float]) -> None:
    """Each search at each budget: the time of the best it finds by that of the default."""
    best = min(times)
    print(f"{problem.title}, M from {part.first_rows}: {len(times)} candidates, the best of all {best:.3f}")
    searches: tuple[tuple[str, Callable[[int], float]], ...] = (
        ("ours: likely ones, then neighbours", lambda n: ours(problem, part, times, n)),
        ("in the order of the estimate", lambda n: ranked(times, n)),
        (f"evolution over ours, mean of {DRAWS}", lambda n: evolved(problem, part, times, n)),
        (f"random, mean of {DRAWS}", lambda n: drawn(times, n)),
    )
    print("| search | " + " | ".join(f"{n} trials" for n in BUDGETS) + " |")
    print("|---|" + "---|" * len(BUDGETS))
    for name, run in searches:
        print(f"| {name} | " + " | ".join(f"{run(n):.3f}" for n in BUDGETS) + " |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "search"))
    parser.add_argument("linears", nargs="*", metavar="KxN:M:BITS:GROUP")
    parser.add_argument("--records", type=Path, action="append", default=[], help="more records")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing, for each candidate")
    options = parser.parse_args()
    target = detect()
    with LocalMeasurer(target) as measurer:
        if options.what == "table":
            print_table(table_rows(target, measurer, options.records, options.seconds))
        for text in options.linears:
            shape, rows, bits, group_size = text.split(":")
            k, n = map(int, shape.split("x"))
            problem = problem_of(target, k, n, int(bits), int(group_size))
            part = next(
                part
                for part in problem.parts
                if part.first_rows <= int(rows) and (part.last_rows is None or int(rows) <= part.last_rows)
            )
            if options.what == "search":
                print_searches(problem, part, all_times(problem, part, measurer, options.seconds))


if __name__ == "__main__":
    main()
