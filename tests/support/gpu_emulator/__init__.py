"""Executes generated CUDA and Metal kernels on the CPU, launched as the host part would launch them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tvm import tirx
from tvm.sym import Analyzer

INCLUDE = Path(__file__).parent / "include"
COMPILER = shutil.which("g++")
AXES = ("x", "y", "z")

_CUDA_KERNEL = re.compile(
    r'^extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\((.*)\) \{$', re.M
)
_METAL_KERNEL = re.compile(r"^kernel void (\w+)\((.*?)\) \{$", re.M | re.S)
_METAL_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)\};$", re.M | re.S)


@dataclass(frozen=True)
class Launch:
    """Which kernel of a PrimFunc runs for an M, by its place in the source, and with how many threads."""

    index: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


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
    extents: dict[str, int] = {}
    while isinstance(statement, tirx.AttrStmt) and statement.attr_key == "thread_extent":
        extents[str(statement.node.thread_tag)] = evaluate(statement.value)
        statement = statement.body
    grid, block = (
        tuple(extents.get(f"{kind}.{axis}", 1) for axis in AXES) for kind in ("blockIdx", "threadIdx")
    )
    return Launch(index, grid, block)


class Emulated:
    """The kernels of one generated source, ready to run.

    Args:
        source: what ``inspect_source`` of the device module returned.
        dialect: "cuda" or "metal".
        folder: where to compile.
        flags: more arguments for the compiler.
    """

    def __init__(self, source: str, dialect: str, folder: Path, flags: tuple[str, ...] = ()) -> None:
        text, self.parameters = _cuda_program(source) if dialect == "cuda" else _metal_program(source)
        path = folder / "kernels.cc"
        path.write_text(text, encoding="utf-8")
        library = folder / "kernels.so"
        command = [
            str(COMPILER), "-std=c++17", "-O0", "-w", "-shared", "-fPIC", f"-I{INCLUDE}", *flags,
            "-fsanitize=alignment", "-fno-sanitize-recover=alignment", "-static-libubsan",
            "-o", str(library), str(path),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[:4000])
        self.library = ctypes.CDLL(str(library))
        self.names = list(self.parameters)

    def run(self, func: Any, arrays: dict[str, np.ndarray], m: int) -> None:
        """Run what ``func`` launches for M = m; ``arrays`` by buffer name, changed in place."""
        launch = launch_for(func, "m", m)
        name = self.names[launch.index]
        arguments = []
        for parameter in self.parameters[name]:
            if parameter.endswith("_ptr"):
                pointer = arrays[parameter.removesuffix("_ptr")].ctypes.data
                arguments.append(ctypes.cast(ctypes.pointer(ctypes.c_void_p(pointer)), ctypes.c_void_p))
            else:
                # The host hoists M - 1 into an argument of its own.
                number = m if parameter == "m" else m - 1
                arguments.append(ctypes.cast(ctypes.pointer(ctypes.c_int64(number)), ctypes.c_void_p))
        grid = (ctypes.c_uint * 3)(*launch.grid)
        block = (ctypes.c_uint * 3)(*launch.block)
        getattr(self.library, f"run_{name}")(grid, block, (ctypes.c_void_p * len(arguments))(*arguments))


def _wrapper(name: str, call: str, setup: str = "") -> str:
    return (
        f'extern "C" void run_{name}(const unsigned* grid, const unsigned* block, void** a) {{\n{setup}'
        f"  emulator::run_grid(grid, block, [&] {{ {call}; }});\n}}\n"
    )


def _cuda_program(source: str) -> tuple[str, dict[str, list[str]]]:
    parameters, wrappers = {}, []
    for name, text in _CUDA_KERNEL.findall(source):
        declared = [re.sub(r"\s*__restrict__", "", part).rsplit(" ", 1) for part in text.split(", ")]
        parameters[name] = [parameter for _, parameter in declared]
        values = ", ".join(f"*({kind}*)a[{i}]" for i, (kind, _) in enumerate(declared))
        wrappers.append(_wrapper(name, f"{name}({values})"))
    # C++ wants the two in the other order.
    source = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 __shared__", source)
    return source + "\n" + "\n".join(wrappers), parameters


def _metal_program(source: str) -> tuple[str, dict[str, list[str]]]:
    parameters, units = {}, []
    for number, unit in enumerate(source.split("// Function: ")[1:]):
        match = _METAL_KERNEL.search(unit)
        assert match, unit[:200]
        name = match.group(1)
        names, values, setup = [], [], ""
        for part in match.group(2).split(",\n"):
            declared = part.split("[[")[0].strip()
            kind, parameter = declared.rsplit(" ", 1)
            if parameter in ("blockIdx", "threadIdx"):
                what = (
                    "emulator::block"
                    if parameter == "blockIdx"
                    else "emulator::fibers[emulator::current].position"
                )
                fields = ", ".join(f"{what}.{axis}" for axis in AXES[: int(kind[-1])] if kind[-1].isdigit())
                values.append(f"{kind}{{{fields}}}" if fields else f"{what}.x")
            elif kind.startswith("constant"):
                struct = kind.removeprefix("constant").strip(" &")
                body = next(text for found, text in _METAL_STRUCT.findall(unit) if found == struct)
                fields = re.findall(r"(\w+) (\w+)(?:\[\d+\])?;", body)
                numbers = ", ".join(f"*({kind}*)a[{len(names) + i}]" for i, (kind, _) in enumerate(fields))
                setup = f"  {struct} scalars{{{numbers}}};\n"
                values.append("scalars")
                names += [field for _, field in fields]
            else:
                pointer = kind.removeprefix("device").strip()
                values.append(f"*({pointer}*)a[{len(names)}]")
                names.append(parameter)
        parameters[name] = names
        unit = unit.split("\n", 1)[1].replace("using namespace metal;", "")
        unit = unit.replace("#include <metal_stdlib>", "")
        # A declaration in threadgroup memory is shared by the block's fibers; a cast needs no word.
        unit = re.sub(r"^(\s*)threadgroup (\w+ \w+\[)", r"\1static \2", unit, flags=re.M)
        wrapper = _wrapper(name, f"{name}({', '.join(values)})", setup)
        units.append(f"namespace unit{number} {{\nusing namespace metal;\n{unit}\n{wrapper}}}\n")
    return "#include <metal_stdlib>\n" + "\n".join(units), parameters
