"""Candidates of one problem, built for a device and linked with what checks and times them there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from awq_tvm.bundle.machine import operating_system
from awq_tvm.compile.toolchain.linker import Linker, run_tool
from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.compile.tuning.measurement import Failed
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.reach import way_to_measure
from awq_tvm.errors import TargetError
from awq_tvm.targets import Target

_TIMER = Path(__file__).with_name("native") / "device_timer.cc"
_INCLUDE = Path(tvm_ffi.__file__).parent / "include"


@dataclass(frozen=True)
class DeviceLibrary:
    """A library of candidates.

    Attributes:
        path: of it; there is no such file where no candidate could be built.
        kernels: for each candidate, by its place in what was asked for, its number in the library.
        refused: why others could not be built.
    """

    path: Path
    kernels: Mapping[int, int]
    refused: Mapping[int, Failed]


def check_device(target: Target) -> Linker:
    """The linker for a device that can be measured from another machine.

    Raises:
        TargetError: there is none, or such devices cannot be measured.
    """
    triple = str(target.tvm_target.get("mtriple", ""))
    if target.kind != "cpu" or operating_system(triple) != "linux":
        raise TargetError(
            f"{target.name} cannot be measured from another machine",
            where="--target",
            why="only CPUs under Linux and Android can, and NVIDIA's GPUs by a pack",
            fix=way_to_measure(target),
        )
    return linker_for(triple)


def build_device_library(problem: Problem, configs: Sequence[Mapping[str, Any]], path: Path) -> DeviceLibrary:
    """Build candidates into one library; those that cannot be built are left out.

    Args:
        problem: the linear.
        configs: fields that differ from the default, for each candidate.
        path: of the library, whose folder exists.

    Raises:
        TargetError: the target's linker is missing or fails.
    """
    linker = check_device(problem.target)
    funcs: dict[int, Any] = {}
    refused: dict[int, Failed] = {}
    for place, fields in enumerate(configs):
        try:
            funcs[place] = problem.build(dict(fields))
        except Exception as error:
            # Whatever TVM raises: a candidate that cannot be built is no reason to end.
            refused[place] = Failed("refused", str(error)[:400])
    try:
        executable = _compiled(problem, list(funcs.values()))
    except Exception:
        refused |= {place: why for place, func in funcs.items() if (why := _refusal(problem, func))}
        funcs = {place: func for place, func in funcs.items() if place not in refused}
        executable = _compiled(problem, list(funcs.values()))
    if funcs:
        with tempfile.TemporaryDirectory() as folder:
            timer = _compiled_timer(linker, len(funcs), Path(folder))
            executable.export_library(str(path), fcompile=linker, addons=[str(timer)])
    return DeviceLibrary(path, {place: number for number, place in enumerate(funcs)}, refused)


def build_describer(target: Target, path: Path) -> Path:
    """A library without candidates, which has a device say what it is.

    Raises:
        TargetError: the target's linker is missing or fails.
    """
    linker = check_device(target)
    with tempfile.TemporaryDirectory() as folder:
        linker(str(path), [str(_compiled_timer(linker, 0, Path(folder)))])
    return path


def _compiled_timer(linker: Linker, count: int, folder: Path) -> Path:
    """The object that checks and times so many kernels."""
    timer = folder / "timer.o"
    each = " ".join(f"K({number})" for number in range(count))
    run_tool(
        [
            *linker.command, "-std=c++17", "-O2", "-fPIC", f"-DEACH_KERNEL={each}", f"-I{_INCLUDE}",
            "-c", str(_TIMER), "-o", str(timer),
        ],
        "What times kernels on the device could not be compiled",
    )  # fmt: skip
    return timer


def _refusal(problem: Problem, func: Any) -> Failed | None:
    try:
        _compiled(problem, [func])
    except Exception as error:
        return Failed("refused", str(error)[:400])
    return None


def _compiled(problem: Problem, funcs: Sequence[Any]) -> Any:
    named = {
        f"kernel_{number}": func.with_attr("global_symbol", f"kernel_{number}")
        for number, func in enumerate(funcs)
    }
    target = tvm.target.Target(problem.target.tvm_target_with_host)
    return tvm.compile(tvm.IRModule(named), target=target) if named else None
