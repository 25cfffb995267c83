"""What stock TVM makes of a quantized linear: MetaSchedule on the plain operation, without our schedules or layout.

The operation takes the rows of codes as a checkpoint has them, two in a byte, and is written as one expression that
decodes and multiplies; MetaSchedule inlines, tiles, vectorizes and unrolls it. It needs `cloudpickle`, `tornado` and
`psutil`, which TVM does not bring along, and `xgboost` too for the cost model that it prefers; without that the
candidates are evolved by a random cost model.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import te

from awq_tvm.compile.tuning.measurement import Measurer
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.search import search_part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

NEEDED = ("cloudpickle", "tornado", "psutil")


@dataclass(frozen=True)
class Stock:
    """What was found.

    Attributes:
        microseconds: of a call, weights from memory.
        trials: candidates that MetaSchedule measured.
        seconds: that its search took.
        cost_model: that ranked them.
    """

    microseconds: float
    trials: int
    seconds: float
    cost_model: str


def missing() -> list[str]:
    """Packages without which MetaSchedule does not start."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def plain_operation(spec: MatmulSpec, rows: int) -> Any:
    """y[M, N] = sum over k of x[M, k] * (q[N, k] - z[N, g]) * s[N, g], codes two in a byte, float32."""
    n, k, groups = spec.out_features, spec.in_features, spec.groups
    x = te.placeholder((rows, k), "float32", "x")
    codes = te.placeholder((n, k // 2), "uint8", "codes")
    scales = te.placeholder((n, groups), "float16", "scales")
    zeros = te.placeholder((n, groups), "uint8", "zeros")

    def decoded(row: Any, col: Any) -> Any:
        byte = codes[row, col // 2]
        code = tvm.tirx.bitwise_and(
            tvm.tirx.shift_right(byte, (col % 2 * 4).astype("uint8")), tvm.tirx.const(15, "uint8")
        )
        group = col // spec.group_size
        return (code.astype("float32") - zeros[row, group].astype("float32")) * scales[row, group].astype(
            "float32"
        )

    weight = te.compute((n, k), decoded, "weight")
    over = te.reduce_axis((0, k), "k")
    y = te.compute((rows, n), lambda i, j: te.sum(x[i, over] * weight[j, over], axis=over), "y")
    return te.create_prim_func([x, codes, scales, zeros, y])


def tuned(spec: MatmulSpec, rows: int, target: Target, trials: int, seed: int = 1) -> Stock:
    """Search with MetaSchedule for one thread, check the winner's numbers, and time it with weights from memory."""
    from tvm.s_tir import meta_schedule as ms

    one_core = {**target.tvm_target, "num-cores": 1}
    chip = tvm.target.Target(one_core)
    func = plain_operation(spec, rows)
    cost_model = "xgb" if importlib.util.find_spec("xgboost") else "random"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        database = ms.tune_tir(
            func,
            chip,
            folder,
            trials,
            num_trials_per_iter=min(16, trials),
            cost_model=cost_model,
            num_tuning_cores=1,
            seed=seed,
        )
        measured = len(database)
        schedule = ms.tir_integration.compile_tir(database, func, chip)
    if schedule is None:
        raise SystemExit("MetaSchedule found no schedule that runs")
    seconds = time.monotonic() - start
    kernel = tvm.compile(schedule.mod, target=chip)["main"]
    return Stock(_time(kernel, spec, rows), measured, seconds, cost_model)


def _time(kernel: Any, spec: MatmulSpec, rows: int) -> float:
    rng = np.random.default_rng(3)
    n, k = spec.out_features, spec.in_features
    x = rng.standard_normal((rows, k), dtype=np.float32)
    q = rng.integers(0, 16, (n, k), dtype=np.uint8)
    zeros = rng.integers(0, 16, (n, spec.groups), dtype=np.uint8)
    scales = (rng.random((n, spec.groups)) * 0.02 + 0.001).astype(np.float16)
    codes = q[:, ::2] | (q[:, 1::2] << 4)
    sets = [
        [tvm.runtime.tensor(array) for array in (codes, scales, zeros)]
        for _ in range(max(2, min(2048, 2**28 // codes.nbytes)))
    ]
    given, y = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros((rows, n), np.float32))
    kernel(given, *sets[0], y)
    weight = (q.astype(np.float64) - np.repeat(zeros, spec.group_size, 1)) * np.repeat(
        scales.astype(np.float64), spec.group_size, 1
    )
    off = np.abs(y.numpy() - x @ weight.T) / (np.abs(x) @ np.abs(weight).T)
    assert off.max() < 1e-5, f"off by {off.max():.2g}"
    samples: list[float] = []
    place = 0
    end = time.thread_time() + 1.0
    while time.thread_time() < end or len(samples) < 9:
        begin = time.thread_time()
        for _ in range(4):
            kernel(given, *sets[place % len(sets)], y)
            place += 1
        samples.append((time.thread_time() - begin) / 4)
    return 1e6 * float(np.quantile(samples, 0.25))


def report(problem: Problem, rows: int, trials: int, measurer: Measurer) -> str:
    """Both searches with so many trials, in words."""
    if packages := missing():
        return f"not run: TVM's MetaSchedule needs {', '.join(packages)}"
    spec = problem.spec
    assert isinstance(spec, MatmulSpec)
    part = next(
        p for p in problem.parts if p.first_rows <= rows and (p.last_rows is None or rows <= p.last_rows)
    )
    part = replace(part, timed_rows=(rows,))
    start = time.monotonic()
    mine = search_part(problem, part, measurer, trials=trials)
    seconds = time.monotonic() - start
    assert mine.times is not None
    assert mine.default_times is not None
    stock = tuned(spec, rows, problem.target, trials)
    return (
        f"{problem.title}, M = {rows}, {trials} trials: ours {mine.times.cold:.1f} us (default "
        f"{mine.default_times.cold:.1f}, {seconds:.0f} s of search), MetaSchedule on the plain operation "
        f"{stock.microseconds:.1f} us ({stock.trials} measured, {stock.seconds:.0f} s, cost model {stock.cost_model})"
        f": ours is {stock.microseconds / mine.times.cold:.2f} times as fast"
    )
