"""Runs the kernels of one PrimFunc in the emulator, launched as its host part would launch them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.sym import Analyzer

from awq_tvm.emulate import EmulatedKernels, build_kernels

COMPILER = shutil.which("g++")
AXES = ("x", "y", "z")

_DYNAMIC = re.compile(r'alloc_buffer\(\((\d+),\), "uint32", scope="shared.dyn"\)')


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
