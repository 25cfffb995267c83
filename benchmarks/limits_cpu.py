"""What this machine can do at best: FMA, byte dot products, reading from each level of memory.

    python benchmarks/limits_cpu.py [--threads 1]

Loops of nothing but the instruction in question, written in TensorIR and compiled for this machine as our kernels
are. The best of many short runs counts: other load on the machine makes a run slower, never faster.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.dot import dot_product
from awq_tvm.schedules.cpu.vectors import LANES, Register, fma, lanes
from awq_tvm.targets import Target, detect

CHAINS = 12
"""Independent sums: more than latency times throughput of the instructions."""

STEPS = 20_000
LEVELS = (("L2", 512 * 2**10), ("L3", 8 * 2**20), ("memory", 256 * 2**20))
"""Bytes that each thread reads: less than half of a usual cache of that level."""

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
    for name, size in LEVELS:
        count = size // (4 * LANES * CHAINS)
        seconds = _best(
            "int32",
            count * LANES * CHAINS,
            count,
            lambda s, x, i: s ^ x[lanes(i * LANES)],
            target,
            threads,
            runs=6 if name == "memory" else 300,
        )
        read[name] = threads * 4 * count * LANES * CHAINS / seconds / 1e9
    return Limits(
        threads,
        fma=2 * steps / fma_seconds,
        dot=8 * steps / dot_seconds if dot_seconds else 0.0,
        read=read,
    )


def _best(
    dtype: str, count: int, steps: int, advance: Advance, target: Target, threads: int, runs: int = 100
) -> float:
    """Seconds of the fastest of some runs of ``steps`` rounds, in which each sum of each thread advances once."""
    function = _compiled(dtype, count, steps, advance, target, threads)
    source = tvm.runtime.tensor(np.ones((threads, count), dtype))
    sums = tvm.runtime.tensor(np.zeros((threads, LANES), dtype))
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        function(source, sums)
        best = min(best, time.perf_counter() - start)
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    # TVM reads this when its thread pool starts, at the first parallel loop.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    found = measure_limits(detect(), threads)
    print(f"float32 FMA            {found.fma:8.1f} GFLOP/s")
    print(f"byte dot product       {found.dot:8.1f} GOP/s")
    for name, speed in found.read.items():
        print(f"read from {name:12} {speed:8.1f} GB/s")


if __name__ == "__main__":
    main()
