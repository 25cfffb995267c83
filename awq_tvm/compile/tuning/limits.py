"""What this machine can do at best: FMA, byte dot products, reading from each level of memory.

    python -m awq_tvm.compile.tuning.limits THREADS     one line of JSON

Loops of nothing but the instruction in question, written in TensorIR and compiled for this machine as our kernels
are. The best of many short runs counts: other load on the machine makes a run slower, never faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.dot import dot_product
from awq_tvm.schedules.cpu.vectors import LANES, Register, fma, lanes, prefetch
from awq_tvm.targets import Target, detect

CHAINS = 12
"""Independent sums: more than latency times throughput of the instructions."""

STEPS = 20_000
LEVELS = (("L2", 512 * 2**10, 1), ("L3", 8 * 2**20, 1), ("memory", 4 * 2**20, 64))
"""Bytes that each thread reads at once, less than half of a usual cache of that level, and from how many places."""

AHEAD = 8 * 2**10
"""Bytes between what is asked for and what is read."""

Advance = Callable[[Any, Any, Any], Any]
"""(sum, the source, index of a vector in it) -> sum."""


@dataclass(frozen=True)
class Limits:
    """The best that was seen, all threads together.

    Attributes:
        threads: that ran at once.
        fma: float32 FMA, 10^9 operations a second, two each.
        dot: byte dot products, the same; 0 where there are none.
        read: 10^9 bytes a second by level: "L2", "L3", "memory".
    """

    threads: int
    fma: float
    dot: float
    read: dict[str, float]


def measure_limits(target: Target, threads: int) -> Limits:
    """Measure all of them, in about five seconds.

    Args:
        target: this machine.
        threads: to run at once; TVM's pool must have that many.
    """
    fma_seconds = _best(
        "float32", LANES, STEPS, lambda s, x, _: fma(s, x[lanes()], x[lanes()]), target, threads
    )
    steps = LANES * CHAINS * STEPS * threads / 1e9
    dot = dot_product(target.features, 7)
    dot_seconds = dot and _best(
        "int32", LANES, STEPS, lambda s, x, _: dot.add(s, x[lanes()], x[lanes()]), target, threads
    )
    read = {}
    for name, size, places in LEVELS:
        count = size // (4 * LANES * CHAINS)
        # Some processors read memory faster when they are asked ahead, some without.
        seconds = min(
            _best("int32", count * LANES * CHAINS, count, advance, target, threads, runs=300, places=places)
            for advance in (_read, _read_and_ask_ahead)
        )
        read[name] = threads * 4 * count * LANES * CHAINS / seconds / 1e9
    return Limits(
        threads,
        fma=2 * steps / fma_seconds,
        dot=8 * steps / dot_seconds if dot_seconds else 0.0,
        read=read,
    )


def _read(total: Any, source: _Row, vector: Any) -> Any:
    return total ^ source[lanes(vector * LANES)]


def _read_and_ask_ahead(total: Any, source: _Row, vector: Any) -> Any:
    source.ask(vector * LANES + AHEAD // 4)
    return _read(total, source, vector)


def _best(
    dtype: str,
    count: int,
    steps: int,
    advance: Advance,
    target: Target,
    threads: int,
    runs: int = 100,
    places: int = 1,
) -> float:
    """Seconds of the fastest of some runs of ``steps`` rounds, in which each sum of each thread advances once."""
    function = _compiled(dtype, count, steps, advance, target, threads)
    sources = [tvm.runtime.tensor(np.ones((threads, count), dtype)) for _ in range(places)]
    sums = tvm.runtime.tensor(np.zeros((threads, LANES), dtype))
    best = float("inf")
    clock = time.thread_time if threads == 1 else time.perf_counter
    for run in range(runs):
        start = clock()
        function(sources[run % places], sums)
        best = min(best, clock() - start)
    return best


def _compiled(dtype: str, count: int, steps: int, advance: Advance, target: Target, threads: int) -> Any:
    """f(source [threads, count], sums [threads, 16]); a thread reads a row."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("limit")
        whole = T.match_buffer(T.arg("source", T.handle()), (threads, count), dtype)
        result = T.match_buffer(T.arg("sums", T.handle()), (threads, LANES), dtype)
        with T.parallel(0, threads) as thread:
            source = _Row(whole, thread)
            sums = [Register(source[lanes()], dtype) for _ in range(CHAINS)]
            with T.serial(0, steps) as step:
                for chain, register in enumerate(sums):
                    register.set(advance(register.get(), source, step * CHAINS + chain))
            for register in sums:
                T.buffer_store(result, result[thread, lanes()] + register.get(), [thread, lanes()])
    func = builder.get().with_attr("global_symbol", "limit")
    return tvm.compile(tvm.IRModule({"limit": func}), target=tvm.target.Target(target.tvm_target))["limit"]


class _Row:
    """A row of a buffer, indexed like a buffer."""

    def __init__(self, whole: Any, row: Any) -> None:
        self._whole, self._row = whole, row

    def __getitem__(self, index: Any) -> Any:
        return self._whole[self._row, index]

    def ask(self, index: Any) -> None:
        """Have an element's cache line fetched."""
        prefetch(self._whole, [self._row, index])


def limits_of_this_machine(threads: int) -> Limits | None:
    """``measure_limits`` in a process of its own, with a thread pool of its own; None where it does not end well."""
    done = subprocess.run(
        [sys.executable, "-m", "awq_tvm.compile.tuning.limits", str(threads)],
        env={**os.environ, "TVM_NUM_THREADS": str(threads)},
        capture_output=True,
        check=False,
        timeout=300,
    )
    try:
        return Limits(**json.loads(done.stdout))
    except (ValueError, TypeError):
        return None


def main() -> None:
    """Measure and print."""
    print(json.dumps(asdict(measure_limits(detect(), int(sys.argv[1])))))


if __name__ == "__main__":
    main()
