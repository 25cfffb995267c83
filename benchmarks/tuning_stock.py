"""TVM's MetaSchedule on a quantized linear as stock TVM states it, its candidates timed by our clock.

The operation takes the rows of codes as a checkpoint has them, two in a byte, and is written as one expression that
decodes and multiplies; MetaSchedule inlines, tiles, vectorizes and unrolls it. Its candidates are built and timed as
ours are: a few at once, in turns with our default, each call with weights from memory, after their numbers were
checked. It needs `cloudpickle`, `tornado` and `psutil`, which TVM does not bring along, and `xgboost` and `scipy` too
for the cost model that it prefers; without them a random one leads its evolution.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import te

from awq_tvm.compile.tuning import timing
from awq_tvm.compile.tuning.device_plan import COLD_BYTES, ERROR_ALLOWED, MOST_COPIES
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.search import AT_ONCE, SECONDS
from awq_tvm.schedules.spec import MatmulSpec

NEEDED = ("cloudpickle", "tornado", "psutil")

POPULATION, AN_ITERATION = 128, 16
"""Of MetaSchedule's evolution: schedules that its cost model compares, a quarter of what is usual, since each takes
it a second on one core; and how many of them are measured before the model learns again."""

Calls = list[timing.Call]


@dataclass(frozen=True)
class Stock:
    """What MetaSchedule found.

    Attributes:
        ratio: the best time by that of our default, as the search saw it.
        measured: candidates that were timed.
        failed: candidates that could not be built, or computed wrong numbers.
        seconds: that the search took.
        cost_model: that led it.
    """

    ratio: float
    measured: int
    failed: int
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


class StockOperands:
    """x, copies of W as a checkpoint has it, and y in float64.

    Args:
        spec: the linear, of 4 bits.
        rows: M.
    """

    def __init__(self, spec: MatmulSpec, rows: int) -> None:
        rng = np.random.default_rng(3)
        n, k = spec.out_features, spec.in_features
        x = rng.standard_normal((rows, k), dtype=np.float32)
        q = rng.integers(0, 16, (n, k), dtype=np.uint8)
        zeros = rng.integers(0, 16, (n, spec.groups), dtype=np.uint8)
        scales = (rng.random((n, spec.groups)) * 0.02 + 0.001).astype(np.float16)
        arrays = (q[:, ::2] | (q[:, 1::2] << 4), scales, zeros)
        centred = q.astype(np.float64) - np.repeat(zeros, spec.group_size, 1)
        weight = centred * np.repeat(scales.astype(np.float64), spec.group_size, 1)
        self._expected, self._scale = x @ weight.T, np.abs(x) @ np.abs(weight).T
        copies = min(MOST_COPIES, max(2, -(-COLD_BYTES // sum(array.nbytes for array in arrays))))
        self._weights = [[tvm.runtime.tensor(array) for array in arrays] for _ in range(copies)]
        self._x, self._y = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros((rows, n), np.float32))

    def calls(self, kernel: Any) -> Calls:
        """A call of a kernel with each copy."""
        return [partial(kernel, self._x, *weights, self._y) for weights in self._weights]

    def error(self, kernel: Any) -> float:
        """The largest |y - expected| / sum(|x||W|)."""
        self._y.copyfrom(np.full(self._expected.shape, np.nan, np.float32))
        kernel(self._x, *self._weights[0], self._y)
        return float((np.abs(self._y.numpy() - self._expected) / self._scale).max())


class Clock:
    """Times kernels of ours and of MetaSchedule's beside our default, one thread, weights from memory.

    Args:
        problem: the linear.
        rows: M.
    """

    def __init__(self, problem: Problem, rows: int) -> None:
        spec = problem.spec
        assert isinstance(spec, MatmulSpec)
        self._problem, self.rows = problem, rows
        self.stock = StockOperands(spec, rows)
        self._operands = timing.Operands(Numbers(problem, rows))
        self._bound = self._operands.numbers.bind(rows)
        self.default = self.ours({})

    def ours(self, fields: dict[str, Any]) -> Calls:
        """Calls of a configuration of ours, its numbers checked."""
        kernel = timing.compiled(self._problem, fields)
        calls: Calls = [
            partial(kernel, *self._bound.arguments(weights)) for weights in self._operands.weights
        ]
        calls[0]()
        off = self._operands.numbers.error(self._bound.y.numpy())
        if not off <= ERROR_ALLOWED:
            raise ValueError(f"{fields} is off by {off:.2g}")
        return calls

    def beside_default(self, others: Sequence[Calls], seconds: float = SECONDS / 2) -> list[float]:
        """Seconds of a call of the default, and then of each of the others."""
        return timing.in_turns([self.default, *others], seconds, time.thread_time)


def search(clock: Clock, problem: Problem, trials: int, library: Path, seed: int = 1) -> Stock:
    """Have MetaSchedule measure up to ``trials`` candidates, and keep the fastest as a library.

    Raises:
        ValueError: it found none that runs.
    """
    from tvm.ir.utils import derived_object
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.meta_schedule.builder import BuilderResult
    from tvm.s_tir.meta_schedule.runner import RunnerResult

    assert isinstance(problem.spec, MatmulSpec)
    chip = tvm.target.Target({**problem.target.tvm_target, "num-cores": 1})
    ratios: dict[str, float] = {}
    failed: list[str] = []
    cost_model = "xgb" if all(map(importlib.util.find_spec, ("xgboost", "scipy"))) else "random"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:

        @derived_object
        class Builder(ms.builder.PyBuilder):  # type: ignore[misc]
            def build(self, build_inputs: Any) -> Any:
                results = []
                for given in build_inputs:
                    # MetaSchedule removes the folder of what was measured.
                    path = Path(tempfile.mkdtemp(dir=folder)) / "candidate.so"
                    try:
                        tvm.compile(given.mod, target=given.target).export_library(str(path))
                        results.append(BuilderResult(str(path), None))
                    except Exception as error:  # whatever TVM and LLVM raise
                        failed.append(str(error)[:200])
                        results.append(BuilderResult(None, str(error)[:200]))
                return results

        @derived_object
        class Done(ms.runner.PyRunnerFuture):  # type: ignore[misc]
            def __init__(self, ratio: float | None) -> None:
                super().__init__()
                self.ratio = ratio

            def done(self) -> bool:
                return True

            def result(self) -> Any:
                # MetaSchedule wants seconds; only how they compare counts.
                return (
                    RunnerResult(None, "wrong")
                    if self.ratio is None
                    else RunnerResult([self.ratio * 1e-3], None)
                )

        @derived_object
        class Runner(ms.runner.PyRunner):  # type: ignore[misc]
            def run(self, runner_inputs: Any) -> Any:
                paths = [str(given.artifact_path) for given in runner_inputs]
                for first in range(0, len(paths), AT_ONCE):
                    measure(paths[first : first + AT_ONCE])
                return [Done(ratios.get(path)) for path in paths]

        def measure(paths: list[str]) -> None:
            kernels = {path: tvm.runtime.load_module(path)["main"] for path in paths}
            for path, kernel in list(kernels.items()):
                if not (off := clock.stock.error(kernel)) <= ERROR_ALLOWED:
                    failed.append(f"off by {off:.2g}")
                    del kernels[path]
            default, *others = clock.beside_default(
                [clock.stock.calls(kernel) for kernel in kernels.values()]
            )
            for path, other in zip(kernels, others, strict=True):
                ratios[path] = other / default
                if ratios[path] == min(ratios.values()):
                    library.write_bytes(Path(path).read_bytes())

        ms.tune_tir(
            plain_operation(problem.spec, clock.rows),
            chip,
            str(Path(folder) / "work"),
            trials,
            num_trials_per_iter=min(AN_ITERATION, trials),
            builder=Builder(),
            runner=Runner(),
            cost_model=cost_model,
            strategy=ms.search_strategy.EvolutionarySearch(population_size=POPULATION),
            num_tuning_cores=1,
            seed=seed,
        )
        if not ratios:
            raise ValueError("MetaSchedule found no schedule that runs")
    return Stock(min(ratios.values()), len(ratios), len(failed), time.monotonic() - start, cost_model)
