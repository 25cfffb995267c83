"""Build the candidates of a trial, check their numbers, and time them in turn; runs in a process of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import tvm

from awq_tvm.compile.tuning.attention_numbers import AttentionNumbers
from awq_tvm.compile.tuning.device_plan import COLD_BYTES, MOST_COPIES
from awq_tvm.compile.tuning.measurement import Failed, Outcome, Timed, Trial
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.compile.tuning.problem import Problem

STRETCH = 4e-4
"""Seconds that are timed at once: short, so that most are not interrupted on a machine with other work."""

LEAST_STRETCHES = 9

Clock = Callable[[], float]
Call = Callable[[], Any]


class Operands:
    """Copies of a problem's operands where kernels can read them.

    Args:
        numbers: the operands.
    """

    def __init__(self, numbers: Numbers | AttentionNumbers) -> None:
        self.numbers = numbers
        size = sum(array.nbytes for array in numbers.packed)
        self.weights = [
            [tvm.runtime.tensor(array) for array in numbers.packed]
            for _ in range(min(MOST_COPIES, max(2, -(-COLD_BYTES // size))))
        ]


def run_trial(trial: Trial, operands: Operands, threads: int) -> Outcome:
    """Do all of a trial; what a candidate may break is for the caller to survive.

    Args:
        trial: what to do.
        operands: of its problem.
        threads: of TVM's pool. One thread is timed by its own clock, which stands while other processes have its CPU.
    """
    kernels = []
    for fields in trial.configs:
        try:
            kernels.append(compiled(trial.problem, fields))
        except Exception as error:
            # Whatever TVM and LLVM raise: a candidate that cannot be built is no reason to end.
            return Failed("refused", str(error)[:400])
    for kernel in kernels:
        for rows in dict.fromkeys((*trial.checked_rows, *trial.rows)):
            off = _error(kernel, operands, rows)
            if not off <= operands.numbers.bound:
                return Failed("wrong", f"off by {off:.2g} of {operands.numbers.unit} at M = {rows}")
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds = trial.seconds / 2 / len(trial.rows)
    cold, hot = [], []
    for rows in trial.rows:
        bound = operands.numbers.bind(rows)
        given = [bound.arguments(weights) for weights in operands.weights]
        calls = [[partial(kernel, *arguments) for arguments in given] for kernel in kernels]
        cold.append(in_turns(calls, seconds, clock))
        hot.append(in_turns([mine[:1] for mine in calls], seconds, clock))
    return Timed(_by_candidate(cold), _by_candidate(hot))


def _by_candidate(seconds: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    """From [M][candidate] in seconds to [candidate][M] in microseconds."""
    return tuple(tuple(1e6 * time for time in times) for times in zip(*seconds, strict=True))


def compiled(problem: Problem, fields: dict[str, Any]) -> Any:
    """The kernel of one configuration, to call here."""
    func = problem.build(fields).with_attr("global_symbol", "kernel")
    target = tvm.target.Target(problem.target.tvm_target_with_host)
    return tvm.compile(tvm.IRModule({"kernel": func}), target=target)["kernel"]


def _error(kernel: Any, operands: Operands, rows: int) -> float:
    bound = operands.numbers.bind(rows)
    kernel(*bound.arguments(operands.weights[0]))
    return operands.numbers.error(bound.y.numpy())


def in_turns(contenders: Sequence[Sequence[Call]], seconds: float, clock: Clock) -> list[float]:
    """Seconds of a call of each: the lower quartile of many short stretches, in which they take turns.

    The order of a round is drawn anew each time, so that none always comes where another process cuts in. All walk
    through the same copies of the weights, as far apart as can be and at the same pace: else the one in front reads
    from memory, and those behind find what it read in the last level cache.
    """
    draw = random.Random(0)
    count = max(1, round(median(_length(calls, clock) for calls in contenders)))
    places = [i * len(calls) // len(contenders) for i, calls in enumerate(contenders)]
    stretches: list[list[float]] = [[] for _ in contenders]
    end = clock() + seconds * len(contenders)
    while clock() < end or len(stretches[0]) < LEAST_STRETCHES:
        for i in draw.sample(range(len(contenders)), len(contenders)):
            calls = contenders[i]
            turn = [calls[(places[i] + j) % len(calls)] for j in range(count)]
            places[i] = (places[i] + count) % len(calls)
            start = clock()
            for call in turn:
                call()
            stretches[i].append((clock() - start) / count)
    return [float(np.quantile(found, 0.25)) for found in stretches]


def _length(calls: Sequence[Call], clock: Clock) -> int:
    """How many calls fill a stretch."""
    count, elapsed = 0, 0.0
    start = clock()
    while elapsed < STRETCH:
        calls[count % len(calls)]()
        count += 1
        elapsed = clock() - start
    return max(1, round(count * STRETCH / elapsed))
