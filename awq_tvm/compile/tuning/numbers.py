"""Random operands of a problem, and what every candidate must compute from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from awq_tvm.compile.tuning.device_plan import ERROR_ALLOWED
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bound:
    """Operands at one M.

    Attributes:
        arguments: of a kernel, given a copy of the packed arrays.
        y: that it fills, a tensor that is NaN throughout.
    """

    arguments: Callable[[Sequence[Any]], tuple[Any, ...]]
    y: Any


class Numbers:
    """x, W in the family's layout, and y in float64.

    Args:
        problem: the linear.
        rows: the largest M.

    Attributes:
        x: [rows, K] of the linear's type.
        out_features: N.
        packed: the weight arrays, in the order of the kernel's parameters.
        bound: of ``error``.
        unit: of ``error``, in words.
    """

    bound = ERROR_ALLOWED
    unit = "sum(|x||W|)"

    def __init__(self, problem: Problem, rows: int) -> None:
        rng = np.random.default_rng(20230601)
        spec = linear(problem)
        self.out_features = spec.out_features
        self.x = rng.standard_normal((rows, spec.in_features), dtype=np.float32).astype(spec.dtype)
        weight, self.packed = _weight(problem, rng)
        used = self.x.astype(np.float64)
        if isinstance(spec, MatmulSpec) and spec.activations == "int8":
            used = int8_rows(self.x, spec.group_size)
        self._expected = np.empty((rows, spec.out_features))
        self._scale = np.empty((rows, spec.out_features))
        # A slice at a time: W in float64 is sixteen times the size of its codes.
        for start in range(0, spec.out_features, 1024):
            part = weight[start : start + 1024].astype(np.float64)
            self._expected[:, start : start + 1024] = used @ part.T
            self._scale[:, start : start + 1024] = np.abs(used) @ np.abs(part).T

    def bind(self, rows: int) -> Bound:
        """The other operands at one M: the first rows of x, and y."""
        import tvm

        x = tvm.runtime.tensor(self.x[:rows])
        y = tvm.runtime.tensor(np.full((rows, self.out_features), np.nan, np.float32))
        return Bound(lambda weights: (x, *weights, y), y)

    def error(self, y: Array) -> float:
        """The largest |y - expected| / sum(|x||W|) of the first rows; NaN where y has one.

        Args:
            y: [M, N] for some M up to ``rows``.
        """
        m = len(y)
        return float((np.abs(y - self._expected[:m]) / self._scale[:m]).max())

    def device_arrays(self) -> tuple[Array, Array]:
        """What y must be [rows, N], and how far off it may be at any row [N], both float32."""
        rounding = 2.0**-11 if self.x.dtype == np.float16 else 0.0
        allowed = ERROR_ALLOWED * self._scale.min(0) + rounding * np.abs(self._expected).max(0)
        return self._expected.astype(np.float32), allowed.astype(np.float32)


def int8_rows(x: Array, group_size: int) -> Array:
    """X after symmetric int8 quantization of each row and group, float64: what int8 activations mean."""
    groups = x.reshape(len(x), -1, group_size)
    largest = np.abs(groups).max(-1, keepdims=True)
    codes = np.rint(groups * (np.float32(127) / largest)).astype(np.float64)
    used: Array = (codes * (largest / np.float32(127)).astype(np.float64)).reshape(x.shape)
    return used


def linear(problem: Problem) -> MatmulSpec | DenseSpec:
    """What is tuned, where that is a linear.

    Raises:
        TypeError: it is not.
    """
    if isinstance(problem.spec, AttentionSpec):
        raise TypeError(f"{problem.title} is no linear")
    return problem.spec


def _weight(problem: Problem, rng: np.random.Generator) -> tuple[Array, tuple[Array, ...]]:
    """W [N, K], float32 or as it is stored, and its arrays."""
    spec = linear(problem)
    layout = problem.family.layout(spec, problem.target)
    n, k = spec.out_features, spec.in_features
    if isinstance(spec, DenseSpec):
        import ml_dtypes

        dtype = (
            np.dtype(ml_dtypes.bfloat16) if spec.weight_dtype == "bfloat16" else np.dtype(spec.weight_dtype)
        )
        dense = rng.standard_normal((n, k), dtype=np.float32).astype(dtype)
        return dense, layout.pack(dense)
    g = spec.groups
    q = rng.integers(0, 2**spec.bits, (n, k), dtype=np.uint8)
    zeros = rng.integers(0, 2**spec.bits, (n, g), dtype=np.uint8)
    scales = (rng.random((n, g)) * 0.02 + 0.001).astype(np.float16)
    centred = q.astype(np.float32) - np.repeat(zeros, spec.group_size, 1)
    weight = centred * np.repeat(scales.astype(np.float32), spec.group_size, 1)
    return weight, layout.pack(spec, q, scales, zeros)
