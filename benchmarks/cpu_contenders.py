"""One quantized matmul on a CPU, by everything that can do it here: ours, ONNX Runtime, PyTorch, NumPy.

Each contender computes y[M, N] = x[M, K] @ W[N, K].T of the same random x and codes, and can say its y, so that what
is timed is known to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import tvm

from awq_tvm.schedules.cpu.dot_matmul import DotConfig
from awq_tvm.schedules.rule import Match, rules_for
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

COLD_BYTES = 128 * 2**20
"""More than the last-level cache of the machines we know."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Contender:
    """One implementation of one problem.

    Attributes:
        name: its own, "ours" in front of ours.
        calls: do the same work, each on a copy of the weights of its own.
        weight_bytes: that one call reads.
        result: y of the last call, as float32.
        error_allowed: of y, relative to sum(|x||W|) of each element at its largest.
        computes_in: "dot" for byte dot products, "fma" for float32; None where it is neither.
        products: of the instruction for each product of x and W.
    """

    name: str
    calls: tuple[Callable[[], Any], ...]
    weight_bytes: int
    result: Callable[[], Array]
    error_allowed: float
    computes_in: str | None = None
    products: int = 1


@dataclass(frozen=True)
class Problem:
    """What is to be computed.

    Attributes:
        spec: of the linear, without bias; its activations do not count.
        rows: M.
        cold: whether each call finds its weights in no cache.
        threads: that may be used.
    """

    spec: MatmulSpec
    rows: int
    cold: bool
    threads: int

    @cached_property
    def weight(self) -> tuple[Array, Array, Array]:
        """Codes uint8 [N, K], scales float16 [N, G] and zero points uint8 [N, G]."""
        rng = np.random.default_rng(0)
        n, k, g = self.spec.out_features, self.spec.in_features, self.spec.groups
        q = rng.integers(0, 2**self.spec.bits, (n, k), dtype=np.uint8)
        zeros = rng.integers(0, 2**self.spec.bits, (n, g), dtype=np.uint8)
        return q, (rng.random((n, g)) * 0.02 + 0.001).astype(np.float16), zeros

    @cached_property
    def dequantized(self) -> Array:
        """W, float32 [N, K]."""
        q, scales, zeros = self.weight
        width = self.spec.group_size
        centred = q.astype(np.float32) - zeros.astype(np.float32).repeat(width, axis=1)
        return centred * scales.astype(np.float32).repeat(width, axis=1)

    @cached_property
    def x(self) -> Array:
        """Float32 [M, K]."""
        rng = np.random.default_rng(1)
        return rng.standard_normal((self.rows, self.spec.in_features), dtype=np.float32)

    @cached_property
    def expected(self) -> tuple[Array, Array]:
        """Y and, for each element of it, sum(|x||W|): float64 [M, N]."""
        x, weight = self.x.astype(np.float64), self.dequantized.astype(np.float64)
        return x @ weight.T, np.abs(x) @ np.abs(weight).T

    def copies(self, weight_bytes: int) -> int:
        """How many copies of a weight of that size a contender walks through."""
        return max(2, -(-COLD_BYTES // weight_bytes)) if self.cold else 1


def error_of(contender: Contender, problem: Problem) -> float:
    """The largest |y - x W'| / (|x| |W|') of a contender, in float64."""
    contender.calls[0]()
    y, scale = problem.expected
    return float((np.abs(contender.result() - y) / scale).max())


def ours(problem: Problem, target: Target, activations: str) -> Iterator[Contender]:
    """Each registered rule that serves the problem on the target."""
    spec = replace(problem.spec, activations=activations)
    x = tvm.runtime.tensor(problem.x)
    y = tvm.runtime.tensor(np.empty((problem.rows, spec.out_features), np.float32))
    for rule in rules_for(target):
        answer = rule.applies(spec, target)
        if not isinstance(answer, Match):
            continue
        func = rule.build(spec, target, answer.config).with_attr("global_symbol", "kernel")
        module = tvm.compile(tvm.IRModule({"kernel": func}), target=tvm.target.Target(target.tvm_target))
        packed = rule.layout(spec, target).pack(spec, *problem.weight)
        size = sum(array.nbytes for array in packed)
        weights = [[tvm.runtime.tensor(a) for a in packed] for _ in range(problem.copies(size))]
        calls = tuple(partial(module["kernel"], x, *w, y) for w in weights)
        digits = answer.config.planes if isinstance(answer.config, DotConfig) else None
        yield Contender(
            f"ours {rule.name}",
            calls,
            size,
            y.numpy,
            5e-3 if activations == "int8" else 1e-6,
            "fma" if digits is None else "dot",
            digits or 1,
        )


def onnxruntime(problem: Problem, accuracy_level: int) -> Contender:
    """MatMulNBits with block size = group size; accuracy_level 1 computes in float32, 4 in int8."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    spec, rows = problem.spec, problem.rows
    k, n, g = spec.in_features, spec.out_features, spec.group_size
    q, scales, zeros = problem.weight
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
    options.intra_op_num_threads = problem.threads
    size = packed.nbytes + 4 * scales.size + zeros.nbytes
    x, y = problem.x, np.empty((rows, n), np.float32)
    calls = []
    for _ in range(problem.copies(size)):
        session = ort.InferenceSession(model.SerializeToString(), options)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        calls.append(partial(session.run_with_iobinding, binding))
    eight = accuracy_level == 4
    return Contender(
        f"onnxruntime level {accuracy_level}",
        tuple(calls),
        size,
        lambda: y,
        5e-3 if eight else 1e-5,
        "dot" if eight else "fma",
    )


def torch_int4(problem: Problem) -> Contender:
    """PyTorch's own operator for 4-bit weights on CPUs: bfloat16 activations, scales and zero points."""
    import torch

    torch.set_num_threads(problem.threads)
    q, scales, zeros = problem.weight
    width, x = problem.spec.group_size, torch.from_numpy(problem.x).bfloat16()
    # Its W is (q - 8) * scale + zero.
    shift = (8 - zeros.astype(np.float32)) * scales.astype(np.float32)
    pairs = np.stack([scales.astype(np.float32), shift], axis=-1).transpose(1, 0, 2)
    beside = torch.from_numpy(np.ascontiguousarray(pairs)).bfloat16()
    codes = torch.from_numpy(q.astype(np.int32))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    size = packed.nbytes + beside.nbytes
    last: list[Any] = []

    def call(weight: Any, scales_and_zeros: Any) -> None:
        last[:] = [torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, width, scales_and_zeros)]

    calls = tuple(partial(call, packed.clone(), beside.clone()) for _ in range(problem.copies(size)))
    return Contender("torch int4", calls, size, lambda: last[0].float().numpy(), 1e-2)


def torch_dense(problem: Problem) -> Contender:
    """PyTorch's bfloat16 linear, the weight dequantized beforehand."""
    import torch

    torch.set_num_threads(problem.threads)
    x = torch.from_numpy(problem.x).bfloat16()
    weight = torch.from_numpy(problem.dequantized).bfloat16()
    last: list[Any] = []

    def call(copy: Any) -> None:
        last[:] = [torch.nn.functional.linear(x, copy)]

    calls = tuple(partial(call, weight.clone()) for _ in range(problem.copies(weight.nbytes)))
    return Contender("torch bfloat16", calls, weight.nbytes, lambda: last[0].float().numpy(), 1e-2)


def numpy_dense(problem: Problem) -> Contender:
    """NumPy's float32 product, the weight dequantized beforehand."""
    x, weight = problem.x, np.ascontiguousarray(problem.dequantized.T)
    y = np.empty((problem.rows, problem.spec.out_features), np.float32)
    copies = [weight.copy() for _ in range(problem.copies(weight.nbytes))]
    calls = tuple(partial(np.matmul, x, w, y) for w in copies)
    return Contender("numpy float32", calls, weight.nbytes, lambda: y, 1e-6, "fma")
