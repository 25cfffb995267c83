"""Runs the kernels of one matmul in the emulator, launched as its host part would, and compares with float64."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.sym import Analyzer

from awq_tvm import ir_attrs
from awq_tvm.emulate import EmulatedKernels, build_kernels
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.rule import Match, MatmulRule
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="kernels run on the CPU through g++, not installed"
)
AXES = ("x", "y", "z")

_DYNAMIC = re.compile(r'alloc_buffer\(\((\d+),\), "uint32", scope="shared.dyn"')


@dataclass(frozen=True)
class Launch:
    """Which kernel of a PrimFunc runs for an M, by its place in the source, and how it is launched."""

    index: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int


def launch_for(func: Any, symbol: str, value: int) -> Launch:
    """Follow the host part of a PrimFunc for one value of its only symbolic extent."""
    analyzer = Analyzer()

    def evaluate(expression: Any) -> int:
        for variable in tirx.analysis.undefined_vars(expression):
            assert variable.name == symbol, variable
            analyzer.bind(variable, tirx.const(value, "int64"), allow_override=True)
        return int(analyzer.simplify(expression))

    def kernels(statement: Any, taken: bool) -> list[tuple[bool, Any]]:
        """Every kernel in the order of the source, with whether the host part reaches it."""
        if isinstance(statement, tirx.IfThenElse):
            holds = bool(evaluate(statement.condition))
            return kernels(statement.then_case, taken and holds) + kernels(
                statement.else_case, taken and not holds
            )
        if isinstance(statement, tirx.AttrStmt) and statement.attr_key == "thread_extent":
            return [(taken, statement)]
        return kernels(statement.block.body if hasattr(statement, "block") else statement.body, taken)

    found = kernels(func.body, True)
    (index,) = (i for i, (taken, _) in enumerate(found) if taken)
    statement = found[index][1]
    shared = dynamic_shared_bytes(statement)
    extents: dict[str, int] = {}
    while isinstance(statement, tirx.AttrStmt) and statement.attr_key == "thread_extent":
        extents[str(statement.node.thread_tag)] = evaluate(statement.value)
        statement = statement.body
    grid, block = (
        tuple(extents.get(f"{kind}.{axis}", 1) for axis in AXES) for kind in ("blockIdx", "threadIdx")
    )
    return Launch(index, grid, block, shared)


def dynamic_shared_bytes(statement: Any) -> int:
    """What a kernel's arrays in dynamic shared memory take; our kernels have one of 32-bit words, or none."""
    return sum(4 * int(words) for words in _DYNAMIC.findall(statement.script()))


class Emulated:
    """The kernels of one generated source, ready to run.

    Args:
        source: what ``inspect_source`` of the device module returned.
        dialect: what it is written in.
        folder: where to compile.
    """

    def __init__(self, source: str, dialect: Literal["cuda", "metal"], folder: Path) -> None:
        self.kernels = EmulatedKernels(build_kernels(source, dialect, folder))
        # The runtime lists the last one first.
        self.names = list(reversed(self.kernels.parameters))

    def run(self, func: Any, arrays: dict[str, np.ndarray], m: int) -> None:
        """Run what ``func`` launches for M = m; ``arrays`` by buffer name, changed in place."""
        launch = launch_for(func, "m", m)
        name = self.names[launch.index]
        arguments = [
            # The host hoists M - 1 into an argument of its own.
            arrays[parameter.removesuffix("_ptr")] if parameter.endswith("_ptr") else m - (parameter != "m")
            for parameter in self.kernels.parameters[name]
        ]
        self.kernels.launch(name, arguments, launch.grid, launch.block, launch.dynamic_shared_bytes)


def build_for(rule: MatmulRule, case: MatmulSpec, target: Target, config: Any = None) -> tuple[Any, str]:
    """The rule's PrimFunc and the source of its kernels; with the rule's own configuration if none is given."""
    match = rule.applies(case, target)
    assert isinstance(match, Match), match
    func = rule.build(case, target, config or match.config).with_attr("global_symbol", "mm")
    with tvm.target.Target(target.tvm_target_with_host) as built_for:
        library = tvm.tirx.build(tvm.IRModule({"mm": func}), target=built_for)
    return func, library.imports[0].inspect_source(target.kind)


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
    arrays["guarded"] = np.full((m + 2, N), np.nan, case.dtype)
    arrays["y"] = arrays["guarded"][1:-1]
    return arrays


def reference(case: MatmulSpec, a: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """y in float64, and how far a kernel may be off.

    The bound: one rounding of the result to the output's dtype, and float32 sums of K products; no
    elementwise function here is steeper than 1.13.
    """
    W = (a["q"].astype(float) - np.repeat(a["z"], case.group_size, 1)) * np.repeat(
        a["s"].astype(float), case.group_size, 1
    )
    x = a["x"].astype(float)
    bias = a["bias"].astype(float) if case.has_bias else 0.0
    v = x @ W.T + bias
    erf = np.vectorize(math.erf)
    f = {
        None: v,
        "relu": np.maximum(v, 0),
        "silu": v / (1 + np.exp(-v)),
        "gelu": 0.5 * v * (1 + erf(v * math.sqrt(0.5))),
        "gelu_tanh": 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    }[case.activation_function]
    y = f + (a["residual"].astype(float) if case.has_residual else 0.0)
    magnitude = np.abs(x) @ np.abs(W).T + np.abs(bias) + np.abs(y)
    rounding = 2.0**-11 if case.dtype == "float16" else 2.0**-24
    return y, rounding * np.abs(y) + 4 * case.in_features**0.5 * 2.0**-24 * magnitude + 1e-6


def check(kernels: Emulated, func: Any, case: MatmulSpec, m: int) -> None:
    arrays = random_arrays(case, m, LAYOUTS[func.attrs[ir_attrs.LAYOUT]])
    kernels.run(func, arrays, m)
    expected, bound = reference(case, arrays)
    assert (np.abs(arrays["y"] - expected) <= bound).all(), np.abs(arrays["y"] - expected).max()
    assert np.isnan(arrays["guarded"][[0, -1]]).all()
