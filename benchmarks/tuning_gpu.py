"""The likeliest candidates of a linear for a GPU that is not here: built by nvcc and counted, not timed.

    python benchmarks/tuning_gpu.py 4096x4096:1:4:128 --target nvidia-a100 --candidates 4

For each: registers of a thread, spilled bytes, shared memory, blocks that fit an SM at once by all of these, and what
the roofline model that ranks them expects. A linear is KxN:M:bits:group size; float16 activations.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.cuda.config import TensorCoreConfig
from awq_tvm.schedules.cuda.cost import THREADS_A_SM, Gpu, few_work, tiled_seconds
from awq_tvm.schedules.rule import Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve


def expected_seconds(spec: MatmulSpec, config: TensorCoreConfig, rows: int, gpu: Gpu) -> float:
    """By the model, of the kernel that serves M = rows."""
    for few in config.few:
        if rows <= few.most_tokens:
            return few_work(spec, few).seconds(gpu)
    for tiled in config.middle:
        if rows <= tiled.tokens:
            return tiled_seconds(spec, config, tiled, rows, gpu)
    return tiled_seconds(spec, config, config.many, rows, gpu)


def count(problem: Problem, config: Any, rows: int, target: Target) -> str:
    """One row of the table: of the first kernel that M = rows launches."""
    assert isinstance(problem.spec, MatmulSpec)
    func = problem.family.build(problem.spec, target, config).with_attr("global_symbol", "mm")
    host = HostPart(func, target)
    launch = host.launches({"m": rows})[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cu"
        path.write_text(host.source)
        _, _, kernels = Nvcc.find().compile(path, (target.own_cuda_arch,), None)
    kernel = next(kernel for kernel in kernels if kernel.name == launch.kernel)
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    shared = launch.shared_bytes + (kernel.shared_bytes or 0)
    registers = kernel.registers or 1
    gpu = Gpu.of(target)
    resident = min(
        gpu.shared_bytes // max(1, shared), gpu.registers // (registers * threads), THREADS_A_SM // threads
    )
    expected = (
        f"{1e6 * expected_seconds(problem.spec, config, rows, gpu):.1f}"
        if isinstance(config, TensorCoreConfig)
        else ""
    )
    spilled = kernel.spill_store_bytes or 0
    return f"{launch.blocks} | {threads} | {registers} | {spilled} | {shared} | {resident} | {expected}"


def part_of(problem: Problem, rows: int) -> Part:
    """The range of M."""
    return next(
        part
        for part in problem.parts
        if part.first_rows <= rows and (part.last_rows is None or rows <= part.last_rows)
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("linears", nargs="+", metavar="KxN:M:BITS:GROUP")
    parser.add_argument("--target", default="nvidia-a100")
    parser.add_argument("--candidates", type=int, default=4)
    options = parser.parse_args()
    target = resolve(options.target)
    for text in options.linears:
        shape, rows, bits, group_size = text.split(":")
        k, n = map(int, shape.split("x"))
        problem = Problem.of(MatmulSpec(k, n, int(bits), int(group_size), "float16"), target)
        if problem is None:
            raise SystemExit(f"{text} has nothing to tune on {target.name}")
        part = part_of(problem, int(rows))
        print(f"{problem.title}, M = {rows}, {target.name}: {len(part.configs)} candidates, {problem.rule}")
        print(
            "| configuration | blocks | threads | registers | spilled | shared | a SM holds | expected us |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for config in part.configs[: options.candidates]:
            print(
                f"| {to_fields(config, part.fields)} | {count(problem, config, int(rows), target)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
