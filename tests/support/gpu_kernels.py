"""Runs the kernels of one matmul in the emulator, launched as its host part would, and compares with float64."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.emulate import EmulatedKernels, build_kernels
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.rule import Match, MatmulRule
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target
from benchmarks.gpu.emulated import launch_emulated

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="kernels run on the CPU through g++, not installed"
)


FUNCTIONS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: 0.5 * v * (1 + np.vectorize(math.erf)(v * math.sqrt(0.5))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
}
"""Elementwise functions by the names of ``MatmulSpec``."""


class Emulated:
    """The kernels of one generated source, ready to run.

    Args:
        source: what ``inspect_source`` of the device module returned.
        dialect: what it is written in.
        folder: where to compile.
    """

    def __init__(self, source: str, dialect: Literal["cuda", "metal"], folder: Path) -> None:
        self.kernels = EmulatedKernels(build_kernels(source, dialect, folder))

    def run(self, built: Built, arrays: dict[str, np.ndarray], m: int) -> None:
        """Run what is launched for M = m; ``arrays`` by buffer name, changed in place."""
        unwritten = {
            name: np.full(size // 4, np.nan, np.float32) for name, size in built.host.workspaces.items()
        }
        self.launch(built.launches(m), arrays | unwritten)

    def launch(self, launches: Sequence[Launch], arrays: dict[str, np.ndarray]) -> None:
        """Run launches in their order, after all that was run before."""
        self.kernels.synchronize()
        for one in launches:
            launch_emulated(self.kernels, one, arrays)


@dataclass(frozen=True)
class Built:
    """One matmul for one target.

    Attributes:
        func: the rule's PrimFunc.
        host: what it launches.
    """

    func: Any
    host: HostPart

    @property
    def source(self) -> str:
        """Of its kernels."""
        return self.host.source

    def launches(self, m: int) -> tuple[Launch, ...]:
        """For M = m."""
        return self.host.launches({"m": m})

    def source_for(self, *tokens: int) -> str:
        """CUDA of the kernels that are launched for these M, and of no other: it is compiled much sooner."""
        wanted = {launch.kernel for m in tokens for launch in self.launches(m)}
        head, *functions = re.split(r'(?=^extern "C" __global__ void)', self.source, flags=re.M)
        found = [function for function in functions if re.search(r"(\w+)\(\w+\*", function)[1] in wanted]
        return head + "".join(found)


def build_for(rule: MatmulRule, case: MatmulSpec, target: Target, config: Any = None) -> Built:
    """What the rule builds; with its own configuration if none is given."""
    match = rule.applies(case, target)
    assert isinstance(match, Match), match
    func = rule.build(case, target, config or match.config).with_attr("global_symbol", "mm")
    return Built(func, HostPart(func, target))


def random_arrays(case: MatmulSpec, m: int, layout: Layout) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(m)
    N, K, G = case.out_features, case.in_features, case.groups
    q = rng.integers(0, 2**case.bits, (N, K), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.03, (N, G)).astype(np.float16)
    zeros = rng.integers(0, 2**case.bits, (N, G), dtype=np.uint8)
    arrays = {"q": q, "s": scales, "z": zeros}
    arrays |= zip(("qweight", "scales", "zeros"), layout.pack(case, q, scales, zeros), strict=True)
    arrays["x"] = rng.standard_normal((m, K)).astype(case.dtype)
    arrays["bias"] = rng.standard_normal(N).astype(case.dtype)
    arrays["residual"] = rng.standard_normal((m, N)).astype(case.dtype)
    # A row before and after that no kernel may touch.
    arrays["guarded"] = np.full((m + 2, case.y_features), np.nan, case.dtype)
    arrays["y"] = arrays["guarded"][1:-1]
    return arrays


def reference(
    case: MatmulSpec, a: dict[str, np.ndarray], rounded: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """y in float64, and how far a kernel may be off; of weights that are rounded to its dtype first if asked.

    The bound: one rounding of the result to the output's dtype, and float32 sums of K products; no
    elementwise function here is steeper than 1.13.
    """
    W = (a["q"].astype(float) - np.repeat(a["z"], case.group_size, 1)) * np.repeat(
        a["s"].astype(float), case.group_size, 1
    )
    if rounded:
        W = W.astype(case.dtype).astype(float)
    x = a["x"].astype(float)
    bias = a["bias"].astype(float) if case.has_bias else 0.0
    v = x @ W.T + bias
    magnitude = np.abs(x) @ np.abs(W).T + np.abs(bias)
    if case.output_gate is None:
        y = FUNCTIONS[case.activation_function](v)
        y = y + (a["residual"].astype(float) if case.has_residual else 0.0)
    else:
        gate, up = FUNCTIONS[case.output_gate](v[:, 0::2]), v[:, 1::2]
        y = gate * up
        magnitude = 1.13 * magnitude[:, 0::2] * np.abs(up) + magnitude[:, 1::2] * np.abs(gate)
    magnitude = magnitude + np.abs(y)
    return y, error_bound(y, magnitude, case.in_features, case.dtype)


def error_bound(y: np.ndarray, magnitude: np.ndarray, in_features: int, dtype: str) -> np.ndarray:
    """How far each y may be off: one rounding to its dtype, and a float32 sum of products of that magnitude."""
    rounding = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    bound: np.ndarray = rounding * np.abs(y) + 4 * in_features**0.5 * 2.0**-24 * magnitude + 1e-6
    return bound


def check(kernels: Emulated, built: Built, case: MatmulSpec, m: int, rounded: bool = False) -> None:
    arrays = random_arrays(case, m, LAYOUTS[built.func.attrs[ir_attrs.LAYOUT]])
    kernels.run(built, arrays, m)
    expected, bound = reference(case, arrays, rounded)
    assert (np.abs(arrays["y"] - expected) <= bound).all(), np.abs(arrays["y"] - expected).max()
    assert np.isnan(arrays["guarded"][[0, -1]]).all()
