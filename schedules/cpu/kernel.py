"""The PrimFunc of a fused matmul on a CPU: its parameters, and what kernels are told of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cpu.epilogue import Output
from awq_tvm.schedules.cpu.prologue import Input
from awq_tvm.schedules.cpu.vectors import LANES, Buffer, Expression
from awq_tvm.schedules.frame import by_rows, scheduled_attributes
from awq_tvm.schedules.layout import Layout
from awq_tvm.schedules.spec import MatmulSpec


@dataclass(frozen=True)
class Operands:
    """The buffers of a fused matmul under construction.

    Args:
        spec: the linear.
        rows: M, a symbolic int64.
        x: [M, K], [M, 2 K] with a gate.
        source: how what is multiplied is made of x.
        weights: the layout's arrays.
        output: y with bias, activation function and residual.
    """

    spec: MatmulSpec
    rows: Expression
    x: Buffer
    source: Input
    weights: tuple[Buffer, ...]
    output: Output

    @property
    def blocks(self) -> int:
        """N in units of 16 outputs, rounded up."""
        return -(-self.spec.out_features // LANES)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight arrays."""
        return sum(math.prod(map(int, w.shape)) * np.dtype(str(w.dtype)).itemsize for w in self.weights)

    def share_out(self, tasks: int, weight_passes: int) -> Expression:
        """The loop over tasks: parallel, unless reading the weights so often takes less than waking threads.

        Args:
            tasks: number of iterations.
            weight_passes: how often the weights are read in all, at least.
        """
        parallel = tasks > 1 and weight_passes * self.weight_bytes >= WORTH_SHARING_BYTES
        return T.parallel(0, tasks) if parallel else T.serial(0, tasks)


WORTH_SHARING_BYTES = 128 * 2**10
"""At 30 GB/s a core reads this in 4 microseconds, about what the start and the end of a parallel loop take."""

PASSES_OF_MANY_ROWS = 4
"""With several rows the work is taken for that of so many, when it is decided whether to share it out."""

Body = Callable[[Operands], None]


def fused_matmul(
    spec: MatmulSpec, layout: Layout, schedule_name: str, bodies: tuple[tuple[int, Body], ...], any_rows: Body
) -> tirx.PrimFunc:
    """A PrimFunc that computes ``spec``, with a body for each range of M.

    Args:
        spec: the linear; the parameters stand in the order it states.
        layout: of the weight parameters.
        schedule_name: put into the attributes.
        bodies: (largest M, what adds the statements) in ascending order.
        any_rows: adds the statements for M beyond the last of ``bodies``.
    """
    k, n = spec.in_features, spec.out_features
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("fused_dequantize_matmul")
        rows = T.int64()

        def parameter(name: str, shape: tuple[Expression, ...], dtype: str) -> Buffer:
            return T.match_buffer(T.arg(name, T.handle()), shape, dtype)

        x = parameter("x", (rows, spec.x_features), spec.dtype)
        weights = tuple(parameter(a.suffix, a.shape, a.dtype) for a in layout.arrays(spec))
        norm = parameter("norm", (k,), spec.dtype) if spec.rms_norm_eps is not None else None
        bias = parameter("bias", (n,), spec.dtype) if spec.has_bias else None
        residual = parameter("residual", (rows, n), spec.dtype) if spec.has_residual else None
        y = parameter("y", (rows, n), spec.dtype)
        output = Output(n, y, bias, residual, spec.activation_function)
        operands = Operands(spec, rows, x, Input(spec, x, norm), weights, output)
        emits = [(largest, partial(body, operands)) for largest, body in bodies]
        by_rows(rows, emits, partial(any_rows, operands))
    func = builder.get()
    if func.attrs is not None and "global_symbol" in func.attrs:
        func = func.without_attr("global_symbol")
    return func.with_attrs(scheduled_attributes(spec, layout, schedule_name))
