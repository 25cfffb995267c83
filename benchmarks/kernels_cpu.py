"""Time our CPU matmul kernels beside ONNX Runtime's and PyTorch's, and against this machine's own limits.

    python benchmarks/kernels_cpu.py                        SmolLM2's linears, M = 1 and 128, this machine
    python benchmarks/kernels_cpu.py --shapes 4096x4096 --group-size 128 --m 1,2,4,8,16,128 --peers
    python benchmarks/kernels_cpu.py --peers --json rows.json --plot roof.svg

Every contender of a problem runs in turn, ``--repetitions`` times over, so that other load on the machine meets all
of them alike; the medians are printed. Each has computed the right thing first. ``cold`` walks through enough copies
of the weights to leave the last level cache behind, ``hot`` repeats one.

The roof of a contender is the longer of two times: of reading its weights, scales and zero points, from memory if
cold, else from the cache that holds them; and of its operations at the peak of the instruction it computes with. Both
speeds are measured in the same run. The roof is the best of many short runs, and the rows are medians, so that a busy
machine makes the part of the roof too small, never too large.

ours / best: how much faster the fastest of ours is than the fastest of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cpu_contenders import (
    Contender,
    Problem,
    error_of,
    numpy_dense,
    onnxruntime,
    ours,
    torch_dense,
    torch_int4,
)

from awq_tvm.compile.tuning.limits import Limits, measure_limits
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve

SMOLLM2_SHAPES = ((576, 576), (576, 960), (576, 3072), (1536, 576))
"""(K, N) of the output projection, of q, k and v, of gate and up, of the down projection."""


@dataclass(frozen=True)
class Row:
    """One contender on one problem; times in seconds.

    Attributes:
        shape: "KxN".
        group_size: inputs that share a scale.
        rows: M.
        heat: "hot" or "cold".
        name: of the contender.
        median: of a call.
        best: of a call, over the repetitions.
        roof: what the machine allows at best; None for a contender without one.
        weight_bytes: that a call reads.
        operations: of a call, 2 K M N.
        error: the largest, relative to sum(|x||W|).
    """

    shape: str
    group_size: int
    rows: int
    heat: str
    name: str
    median: float
    best: float
    roof: float | None
    weight_bytes: int
    operations: float
    error: float


def contenders_of(problem: Problem, target: Target, options: argparse.Namespace) -> Iterator[Contender]:
    """All that the options ask for."""
    for activations in options.activations.split(","):
        yield from ours(problem, target, activations)
    if options.numpy:
        yield numpy_dense(problem)
    if options.peers and problem.spec.bits == 4:
        yield from (onnxruntime(problem, level) for level in (1, 4))
        yield torch_int4(problem)
    if options.peers:
        yield torch_dense(problem)


def seconds_a_call(contender: Contender, at_least: float) -> float:
    """The mean over whole rounds through the copies that last ``at_least`` seconds together."""
    count, start = 0, time.perf_counter()
    while True:
        for call in contender.calls:
            call()
        count += len(contender.calls)
        elapsed = time.perf_counter() - start
        if elapsed >= at_least:
            return elapsed / count


def measure(contenders: Sequence[Contender], repetitions: int, seconds: float) -> list[list[float]]:
    """Seconds a call of every contender, interleaved."""
    for contender in contenders:
        seconds_a_call(contender, 0.0)
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(repetitions):
        for contender, samples in zip(contenders, times, strict=True):
            samples.append(seconds_a_call(contender, seconds))
    return times


def _level_of(weight_bytes: int, target: Target, threads: int) -> str:
    """The first level that can hold the weights; each thread has a second-level cache of its own."""
    if weight_bytes <= (target.l2_bytes or 0) * threads:
        return "L2"
    return "L3" if weight_bytes <= (target.l3_bytes or 0) else "memory"


def roof_of(
    contender: Contender, problem: Problem, operations: float, target: Target, limits: Limits
) -> float | None:
    """Seconds that the machine allows at best, see the top of this file."""
    if contender.computes_in is None:
        return None
    level = "memory" if problem.cold else _level_of(contender.weight_bytes, target, limits.threads)
    peak = {"dot": limits.dot, "fma": limits.fma}[contender.computes_in]
    reading = contender.weight_bytes / limits.read[level] / 1e9
    return max(reading, contender.products * operations / peak / 1e9 if peak else 0.0)


def rows_of(problem: Problem, target: Target, options: argparse.Namespace, limits: Limits) -> list[Row]:
    """Measure one problem.

    Raises:
        AssertionError: a contender computes something else.
    """
    spec = problem.spec
    contenders = list(contenders_of(problem, target, options))
    errors = [error_of(contender, problem) for contender in contenders]
    for contender, error in zip(contenders, errors, strict=True):
        assert error <= contender.error_allowed, f"{contender.name} is off by {error:.2g}"
    operations = 2.0 * problem.rows * spec.in_features * spec.out_features
    times = measure(contenders, options.repetitions, options.seconds)
    return [
        Row(
            shape=f"{spec.in_features}x{spec.out_features}",
            group_size=spec.group_size,
            rows=problem.rows,
            heat="cold" if problem.cold else "hot",
            name=contender.name,
            median=statistics.median(samples),
            best=min(samples),
            roof=roof_of(contender, problem, operations, target, limits),
            weight_bytes=contender.weight_bytes,
            operations=operations,
            error=error,
        )
        for contender, error, samples in zip(contenders, errors, times, strict=True)
    ]


def print_rows(rows: Sequence[Row]) -> None:
    """The lines of the table for one problem."""
    mine = [row.median for row in rows if row.name.startswith("ours")]
    others = [row.median for row in rows if not row.name.startswith("ours")]
    for row in rows:
        roof = "" if row.roof is None else f"{row.roof / row.median:.0%}"
        is_best = bool(mine) and row.median == min(mine)
        ratio = f"{min(others) / row.median:.2f}" if is_best and others else ""
        print(
            f"| {row.shape} g{row.group_size} | {row.rows} | {row.heat} | {row.name} | {row.median * 1e6:.1f} "
            f"| {row.best * 1e6:.1f} | {row.weight_bytes / row.median / 1e9:.1f} "
            f"| {row.operations / row.median / 1e9:.0f} | {roof} | {ratio} |",
            flush=True,
        )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the part of the roof that each of ours reaches, and dots of the others beside it, by problem."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    problems = list(dict.fromkeys((row.shape, row.group_size, row.rows, row.heat) for row in rows))
    figure, axes = pyplot.subplots(figsize=(8, 0.5 + 0.35 * len(problems)), layout="constrained")
    for place, problem in enumerate(problems):
        here = [row for row in rows if (row.shape, row.group_size, row.rows, row.heat) == problem]
        best = min((row for row in here if row.name.startswith("ours")), key=lambda row: row.median)
        if best.roof is None:
            continue
        axes.barh(place, best.roof / best.median, color="#4477aa")
        for row in here:
            if not row.name.startswith("ours"):
                # At the time the other takes, on the scale of our roof.
                axes.plot(best.roof / row.median, place, "o", color="#cc6677", markersize=4)
    axes.set_yticks(
        range(len(problems)), [f"{shape} g{group}, M = {m}, {heat}" for shape, group, m, heat in problems]
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="part of the roof (dots: others, by their time)")
    figure.savefig(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--shapes", default=",".join(f"{k}x{n}" for k, n in SMOLLM2_SHAPES), help="KxN,KxN,..."
    )
    parser.add_argument("--m", default="1,128", help="rows of x")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--activations", default="float,int8")
    parser.add_argument("--heat", default="hot,cold")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="time spent on one measurement")
    parser.add_argument("--numpy", action="store_true", help="NumPy's float32 product too")
    parser.add_argument("--peers", action="store_true", help="ONNX Runtime and PyTorch too: extra [bench]")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--plot", type=Path, help="also draw them there, as SVG")
    options = parser.parse_args()
    target = resolve(options.target)
    # TVM reads these when its thread pool starts, at the first parallel loop; a thread that spins would take the
    # core that another contender's threads run on.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0" if options.peers else "300000")
    limits = measure_limits(target, options.threads)
    reading = ", ".join(f"{name} {speed:.0f}" for name, speed in limits.read.items())
    print(
        f"{target.name}, {options.threads} threads, load {os.getloadavg()[0]:.1f}. Limits: FMA {limits.fma:.0f}, "
        f"byte dot products {limits.dot:.0f} G operations/s; reading {reading} GB/s.\n"
    )
    print("| K x N | M | weights | contender | us | best | GB/s | GOP/s | of the roof | ours / best |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    found: list[Row] = []
    for shape in options.shapes.split(","):
        k, n = map(int, shape.split("x"))
        spec = MatmulSpec(k, n, options.bits, options.group_size, "float32")
        for rows in map(int, options.m.split(",")):
            for heat in options.heat.split(","):
                problem = Problem(spec, rows, heat == "cold", options.threads)
                found += (new := rows_of(problem, target, options, limits))
                print_rows(new)
    if options.json:
        options.json.write_text(json.dumps(_document(target, limits, found), indent=1))
    if options.plot:
        plot(found, options.plot)


def _document(target: Target, limits: Limits, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "machine": {
            "target": target.name,
            "fingerprint": target.fingerprint,
            "processor": platform.processor(),
        },
        "versions": {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi", "numpy")},
        "limits": asdict(limits),
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
