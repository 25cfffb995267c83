"""What this machine's one core can do at best: float32 FMA, byte dot products, reading from each level of memory.

    python -m benchmarks.limits_cpu

Loops of nothing but the instruction in question, written in TensorIR and compiled for this machine as our kernels
are. The best of many short runs is printed: other load on the machine makes a run slower, never faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
SIZES = (("L2", 512 * 2**10), ("L3", 8 * 2**20), ("memory", 256 * 2**20))


def compiled(
    dtype: str, count: int, steps: int, advance: Callable[[Any, Any, int], Any], target: Target
) -> Any:
    """f(source [count] of dtype, sums [16] of dtype): ``steps`` rounds in which each sum advances by one vector."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("limit")
        source = T.match_buffer(T.arg("source", T.handle()), (count,), dtype)
        result = T.match_buffer(T.arg("sums", T.handle()), (LANES,), dtype)
        start = source[lanes()]
        sums = [Register(start, dtype) for _ in range(CHAINS)]
        with T.serial(0, steps) as step:
            for chain, register in enumerate(sums):
                register.set(advance(register.get(), source, step * CHAINS + chain))
        for register in sums:
            T.buffer_store(result, result[lanes()] + register.get(), [lanes()])
    func = builder.get().with_attr("global_symbol", "limit")
    return tvm.compile(tvm.IRModule({"limit": func}), target=tvm.target.Target(target.tvm_target))["limit"]


def best_seconds(function: Any, count: int, dtype: str, runs: int) -> float:
    """The shortest of ``runs`` calls."""
    source = tvm.runtime.tensor(np.ones(count, dtype))
    sums = tvm.runtime.tensor(np.zeros(LANES, dtype))
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        function(source, sums)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Measure and print."""
    target = detect()
    repeated = compiled("float32", LANES, STEPS, lambda s, x, _: fma(s, x[lanes()], x[lanes()]), target)
    seconds = best_seconds(repeated, LANES, "float32", 200)
    print(f"float32 FMA        {2 * LANES * CHAINS * STEPS / seconds / 1e9:8.1f} GFLOP/s")
    dot = dot_product(target.features, 8)
    if dot is not None:
        repeated = compiled("int32", LANES, STEPS, lambda s, x, _: dot(s, x[lanes()], x[lanes()]), target)
        seconds = best_seconds(repeated, LANES, "int32", 200)
        print(f"byte dot product   {8 * LANES * CHAINS * STEPS / seconds / 1e9:8.1f} GOP/s")
    for name, size in SIZES:
        steps = size // (4 * LANES * CHAINS)
        count = steps * LANES * CHAINS
        read = compiled("int32", count, steps, lambda s, x, i: s ^ x[lanes(i * LANES)], target)
        seconds = best_seconds(read, count, "int32", 5 if name == "memory" else 500)
        print(f"read from {name:8} {4 * count / seconds / 1e9:8.1f} GB/s")


if __name__ == "__main__":
    main()
