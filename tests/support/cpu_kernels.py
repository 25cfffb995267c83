"""Build, run and check one CPU kernel: shared by the tests of the CPU families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import erf, pi, sqrt
from typing import Any

import numpy as np
import tvm

from awq_tvm.schedules.rule import MatmulRule, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, detect, missing_features, resolve

TARGETS = ("cpu", "x86-64-v4", "x86-64-v3-vnni", "x86-64-v3")
"""This machine with all it has, then AVX-512 without VNNI, AVX2 with VNNI, and AVX2 alone."""


def target_or_none(name: str) -> Target | None:
    """The target, if this machine can run its code, which is not what ``cpu`` stands for here anyway."""
    target, here = resolve(name), detect()
    if missing_features(target, here) or target.family != here.family:
        return None
    return None if name != "cpu" and target.features == here.features else target


def random_weight(spec: MatmulSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K], float16 scales [N, G], zero points [N, G]."""
    rng = np.random.default_rng(seed)
    n, k, g = spec.out_features, spec.in_features, spec.groups
    q = rng.integers(0, 2**spec.bits, (n, k), dtype=np.uint8)
    zeros = rng.integers(0, 2**spec.bits, (n, g), dtype=np.uint8)
    return q, (rng.random((n, g)) * 0.02 + 0.001).astype(np.float16), zeros


def dequantized(spec: MatmulSpec, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """W [N, K] in float64."""
    size = spec.group_size
    return (q.astype(np.float64) - np.repeat(zeros, size, 1)) * np.repeat(scales.astype(np.float64), size, 1)


def int8_rows(x: np.ndarray, group_size: int) -> np.ndarray:
    """x after symmetric int8 quantization per row and group, as float64; the arithmetic of the kernels."""
    groups = x.reshape(len(x), -1, group_size)
    largest = np.abs(groups).max(-1, keepdims=True)
    factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 1e-30)
    codes = np.rint(groups * factor).astype(np.float64)
    return (codes * (largest / np.float32(127)).astype(np.float64)).reshape(x.shape)


GATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + np.vectorize(erf)(v / sqrt(2))),
    "gelu_tanh": lambda v: v * 0.5 * (1 + np.tanh(sqrt(2 / pi) * (v + 0.044715 * v**3))),
    "relu": lambda v: np.maximum(v, 0),
}
"""In float64."""


def multiplied(spec: MatmulSpec, x: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """What meets the weight, in float64: x as it is, gated or normalised, and rounded to int8 where that is asked."""
    factor = np.ones((len(x), 1))
    if spec.gate is not None:
        gate, up = np.split(x.astype(np.float64), 2, axis=1)
        x = (GATES[spec.gate](gate) * up).astype(np.float32)
    elif spec.rms_norm_eps is not None:
        mean = (x.astype(np.float64) ** 2).mean(1, keepdims=True)
        # The values keep their float32 rounding, on which their codes depend; the rest is a factor of the row.
        x, factor = x * norm, 1 / np.sqrt(mean + spec.rms_norm_eps)
    return (int8_rows(x, spec.group_size) if spec.activations == "int8" else x.astype(np.float64)) * factor


class Kernel:
    """The kernel that the registry chooses for a spec on a target, with these weights or random ones,
    in this configuration or its default.

    Attributes:
        rule: the rule chosen.
        weight: W in float64.
    """

    def __init__(
        self,
        spec: MatmulSpec,
        target: Target,
        arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        config: Any = None,
    ) -> None:
        rule, match = select(spec, target)
        assert isinstance(rule, MatmulRule), match
        self.spec, self.rule = spec, rule
        func = rule.build(spec, target, config or match.config)
        module = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
        self._kernel = tvm.compile(module, target=tvm.target.Target(target.tvm_target))["kernel"]
        arrays = arrays or random_weight(spec)
        self.weight = dequantized(spec, *arrays)
        self._packed = [tvm.runtime.tensor(a) for a in rule.layout(spec, target).pack(spec, *arrays)]
        rng = np.random.default_rng(7)
        self.bias = rng.standard_normal(spec.out_features).astype(np.float32)
        self.norm = rng.standard_normal(spec.in_features).astype(np.float32)

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        """y for x; every element of y starts as NaN."""
        extra: list[Any] = [self.norm] if self.spec.rms_norm_eps is not None else []
        extra += [self.bias] if self.spec.has_bias else []
        extra += [residual] if residual is not None else []
        y = tvm.runtime.tensor(np.full((len(x), self.spec.out_features), np.nan, np.float32))
        self._kernel(tvm.runtime.tensor(x), *self._packed, *map(tvm.runtime.tensor, extra), y)
        return y.numpy()

    def relative_error(self, x: np.ndarray, *, by_largest: bool = False) -> float:
        """Largest |y - reference| / sum(|x| |W|), the scale on which float32 rounding errors live.

        With ``by_largest`` x in that scale is the largest of its group, for kernels that give a group one exponent.
        """
        used = multiplied(self.spec, x, self.norm)
        size = np.abs(used)
        if by_largest:
            groups = size.reshape(len(x), -1, self.spec.group_size)
            size = np.broadcast_to(groups.max(-1, keepdims=True), groups.shape).reshape(size.shape)
        bias = np.abs(self.bias) if self.spec.has_bias else np.zeros_like(self.bias)
        error = np.abs(self.run(x) - used @ self.weight.T - (self.bias if self.spec.has_bias else 0))
        return float((error / (size @ np.abs(self.weight).T + bias)).max())


def spec_of(n: int, k: int, group_size: int, bits: int = 4, **fields: Any) -> MatmulSpec:
    """A float32 spec."""
    return replace(MatmulSpec(k, n, bits, group_size, "float32"), **fields)
