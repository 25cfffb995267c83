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

ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of a result to its type, relative; that to float32 is among what ``ERROR_ALLOWED`` allows."""


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
        rows: the largest M; the first rows of x, and W, are the same for any.
        rounds_weights: W is rounded to the linear's type first, as some kernels do; see ``Part``.

    Attributes:
        x: [rows, K] of the linear's type.
        out_features: N.
        packed: the weight arrays, in the order of the kernel's parameters.
        bound: of ``error``.
        unit: of ``error``, in words.
    """

    bound = ERROR_ALLOWED
    unit = "sum(|x||W|)"

    def __init__(self, problem: Problem, rows: int, rounds_weights: bool = False) -> None:
        of_weight, of_x = map(np.random.default_rng, np.random.SeedSequence(20230601).spawn(2))
        spec = linear(problem)
        self.out_features = spec.out_features
        self.x = of_x.standard_normal((rows, spec.in_features), dtype=np.float32).astype(_dtype(spec.dtype))
        weight, self.packed = _weight(problem, of_weight)
        if rounds_weights:
            weight = weight.astype(self.x.dtype)
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
        rounding = ROUNDING[str(self.x.dtype)]
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


def _dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of that name, or for bfloat16 that of ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _weight(problem: Problem, rng: np.random.Generator) -> tuple[Array, tuple[Array, ...]]:
    """W [N, K], float32 or as it is stored, and its arrays."""
    spec = linear(problem)
    layout = problem.family.layout(spec, problem.target)
    n, k = spec.out_features, spec.in_features
    if isinstance(spec, DenseSpec):
        dense = rng.standard_normal((n, k), dtype=np.float32).astype(_dtype(spec.weight_dtype))
        return dense, layout.pack(dense)
    g = spec.groups
    q = rng.integers(0, 2**spec.bits, (n, k), dtype=np.uint8)
    zeros = rng.integers(0, 2**spec.bits, (n, g), dtype=np.uint8)
    scales = (rng.random((n, g)) * 0.02 + 0.001).astype(np.float16)
    centred = q.astype(np.float32) - np.repeat(zeros, spec.group_size, 1)
    weight = centred * np.repeat(scales.astype(np.float32), spec.group_size, 1)
    return weight, layout.pack(spec, q, scales, zeros)
