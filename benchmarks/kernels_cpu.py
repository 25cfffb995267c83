"""Time the CPU matmul kernels against each other, NumPy, ONNX Runtime and this machine's own limits.

    python -m benchmarks.kernels_cpu                        SmolLM2's linears, M = 1 and 128, this machine
    python -m benchmarks.kernels_cpu --shapes 4096x4096 --group-size 128 --m 1,2,4,8,16,128 --threads 1
    python -m benchmarks.kernels_cpu --onnxruntime          also MatMulNBits; wants onnxruntime and onnx

Every contender of a row runs in turn, ``--repetitions`` times over, so that other load on the machine meets
all of them alike; the medians are printed. ``cold`` walks through enough copies of the weights to leave the
last level cache behind, ``hot`` repeats one. GB/s counts the bytes of the packed weights, scales and
zero points.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import tvm

from awq_tvm.schedules.rule import Match, rules_for
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve

SMOLLM2_SHAPES = ((576, 576), (576, 960), (576, 3072), (1536, 576))
"""(K, N) of the output projection, of q, k and v, of gate and up, of the down projection."""

COLD_BYTES = 128 * 2**20
"""More than the last-level cache of the machines we know."""


@dataclass(frozen=True)
class Contender:
    """One implementation on one problem; ``calls`` do the same work on different copies of the weights."""

    name: str
    calls: tuple[Callable[[], Any], ...]
    weight_bytes: int


def random_weight(spec: MatmulSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K], float16 scales [N, G] and zero points [N, G]."""
    rng = np.random.default_rng(seed)
    n, k, g = spec.out_features, spec.in_features, spec.groups
    q = rng.integers(0, 2**spec.bits, (n, k), dtype=np.uint8)
    zeros = rng.integers(0, 2**spec.bits, (n, g), dtype=np.uint8)
    return q, (rng.random((n, g)) * 0.02 + 0.001).astype(np.float16), zeros


def copies_for(weight_bytes: int, cold: bool) -> int:
    """How many copies of a weight a contender walks through."""
    return max(2, -(-COLD_BYTES // weight_bytes)) if cold else 1


def ours(spec: MatmulSpec, target: Target, rows: int, cold: bool) -> list[Contender]:
    """One contender for each registered rule that serves the spec on the target."""
    contenders = []
    x = tvm.runtime.tensor(
        np.random.default_rng(1).standard_normal((rows, spec.in_features), dtype=np.float32)
    )
    y = tvm.runtime.tensor(np.empty((rows, spec.out_features), np.float32))
    for rule in rules_for(target):
        answer = rule.applies(spec, target)
        if not isinstance(answer, Match):
            continue
        func = rule.build(spec, target, answer.config).with_attr("global_symbol", "kernel")
        kernel = tvm.compile(tvm.IRModule({"kernel": func}), target=tvm.target.Target(target.tvm_target))[
            "kernel"
        ]
        packed = rule.layout(spec, target).pack(spec, *random_weight(spec))
        size = sum(array.nbytes for array in packed)
        weights = [[tvm.runtime.tensor(a) for a in packed] for _ in range(copies_for(size, cold))]
        calls = tuple(partial(kernel, x, *w, y) for w in weights)
        contenders.append(Contender(f"{rule.name}/{spec.activations}", calls, size))
    return contenders


def numpy_dense(spec: MatmulSpec, rows: int, cold: bool) -> Contender:
    """float32 matmul by NumPy's BLAS, the weight already dequantized."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, spec.in_features), dtype=np.float32)
    weight = rng.standard_normal((spec.in_features, spec.out_features), dtype=np.float32)
    y = np.empty((rows, spec.out_features), np.float32)
    weights = [weight.copy() for _ in range(copies_for(weight.nbytes, cold))]
    return Contender("numpy fp32", tuple(partial(np.matmul, x, w, y) for w in weights), weight.nbytes)


def onnxruntime(spec: MatmulSpec, rows: int, cold: bool, threads: int, accuracy_level: int) -> Contender:
    """MatMulNBits with block size = group size; accuracy_level 1 computes in float32, 4 in int8."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    k, n, g = spec.in_features, spec.out_features, spec.group_size
    q, scales, zeros = random_weight(spec)
    packed = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(n, k // g, g // 2)
    zeros = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    zeros = zeros[:, 0::2] | (zeros[:, 1::2] << 4)
    initializers = [
        onnx.numpy_helper.from_array(packed, "w"),
        onnx.numpy_helper.from_array(scales.astype(np.float32).reshape(-1), "s"),
        onnx.numpy_helper.from_array(zeros.reshape(-1), "z"),
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "z"], ["y"], domain="com.microsoft",
        K=k, N=n, bits=4, block_size=g, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, n])],
        initializers,
    )  # fmt: skip
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    size = packed.nbytes + 4 * scales.size + zeros.nbytes
    x = np.random.default_rng(1).standard_normal((rows, k), dtype=np.float32)
    calls = []
    for _ in range(min(copies_for(size, cold), 64)):
        session = ort.InferenceSession(model.SerializeToString(), options)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        calls.append(lambda session=session, binding=binding: session.run_with_iobinding(binding))
    return Contender(f"onnxruntime level {accuracy_level}", tuple(calls), size)


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


def measure(contenders: list[Contender], repetitions: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of every contender, interleaved."""
    for contender in contenders:
        seconds_a_call(contender, 0.0)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(repetitions):
        for contender in contenders:
            times[contender.name].append(seconds_a_call(contender, seconds))
    return times


def report(
    spec: MatmulSpec, rows: int, heat: str, contenders: list[Contender], times: dict[str, Any]
) -> None:
    """Print one line a contender."""
    work = 2.0 * rows * spec.in_features * spec.out_features
    for contender in contenders:
        samples = times[contender.name]
        median = statistics.median(samples)
        spread = max(samples) / min(samples)
        shape = f"{spec.in_features}x{spec.out_features}"
        print(
            f"{shape:>12} g{spec.group_size:<5} M={rows:<4} {heat:4} {contender.name:24}"
            f" {median * 1e6:9.1f} us"
            f" {contender.weight_bytes / median / 1e9:7.1f} GB/s {work / median / 1e9:7.1f} GFLOP/s"
            f"   best {min(samples) * 1e6:9.1f} us, worst / best {spread:4.2f}",
            flush=True,
        )


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
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--activations", default="float,int8")
    parser.add_argument("--heat", default="hot,cold")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="time spent on one measurement")
    parser.add_argument("--numpy", action="store_true")
    parser.add_argument("--onnxruntime", action="store_true")
    arguments = parser.parse_args()
    target = resolve(arguments.target)
    threads = arguments.threads or target.cores or 1
    # TVM reads this when its thread pool starts, at the first parallel loop.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    for shape in arguments.shapes.split(","):
        k, n = map(int, shape.split("x"))
        spec = MatmulSpec(k, n, arguments.bits, arguments.group_size, "float32")
        for rows in map(int, arguments.m.split(",")):
            for heat in arguments.heat.split(","):
                cold = heat == "cold"
                contenders = []
                for activations in arguments.activations.split(","):
                    contenders += ours(replace(spec, activations=activations), target, rows, cold)
                if arguments.numpy:
                    contenders.append(numpy_dense(spec, rows, cold))
                if arguments.onnxruntime:
                    contenders += [onnxruntime(spec, rows, cold, threads, level) for level in (1, 4)]
                times = measure(contenders, arguments.repetitions, arguments.seconds)
                report(spec, rows, heat, contenders, times)


if __name__ == "__main__":
    main()
