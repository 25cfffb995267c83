"""Kernels that begin with a wait, on GPUs whose launches can overlap."""

from __future__ import annotations

import dataclasses

import pytest
import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.passes.overlap_launches import OverlapLaunches
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.targets import Target, resolve

HOPPER = resolve("nvidia-h100")
BEGINNING = ["launch_dependents", "wait"]


def two_kernels(overlaps: bool = True) -> tirx.PrimFunc:
    """y = x + 1, by one kernel for few rows and by two for many."""

    def emit() -> None:
        rows = size("n", "int64")
        x, y = tensor("x", (rows, 32)), tensor("y", (rows, 32))

        def kernel(source, more: float) -> None:
            with T.launch_thread("blockIdx.x", rows) as row, T.launch_thread("threadIdx.x", 32) as thread:
                T.buffer_store(y, source[row, thread] + T.float32(more), [row, thread])

        with T.If(rows <= 4):
            with T.Then():
                kernel(x, 1.0)
            with T.Else():
                kernel(x, 0.5)
                kernel(y, 0.5)

    return build("two", emit, overlaps=overlaps)


def rewritten(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    return OverlapLaunches(target).transform_module(tvm.IRModule({"two": func}), None)["two"]


def actions(statement) -> list[str]:
    """What kernels do about other launches, in order, and where threads begin."""
    if isinstance(statement, tirx.SeqStmt):
        return [found for one in statement.seq for found in actions(one)]
    if isinstance(statement, tirx.AttrStmt):
        return [statement.node.thread_tag, *actions(statement.body)]
    if isinstance(statement, tirx.IfThenElse):
        return [*actions(statement.then_case), *actions(statement.else_case)]
    if isinstance(statement, s_tir.SBlockRealize):
        return actions(statement.block.body)
    if isinstance(statement, tirx.Evaluate):
        return [str(argument.value) for argument in statement.value.args if argument.value]
    return ["store"] if isinstance(statement, tirx.BufferStore) else []


KERNEL = ["blockIdx.x", "threadIdx.x", *BEGINNING, "store"]


def test_every_kernel_begins_with_a_wait() -> None:
    assert actions(rewritten(two_kernels(), HOPPER).body) == 3 * KERNEL
    func = two_kernels()
    root = s_tir.SBlock([], [], [], "root", func.body)
    block = func.with_body(s_tir.SBlockRealize([], tirx.const(True, "bool"), root))
    assert actions(rewritten(block, HOPPER).body) == 3 * KERNEL


@pytest.mark.parametrize(
    ("func", "target"),
    [
        (two_kernels(overlaps=False), HOPPER),
        (two_kernels(), resolve("nvidia-a100")),
        (two_kernels(), resolve("cuda")),
        (two_kernels(), dataclasses.replace(HOPPER, ptx_arch="compute_80")),
        (two_kernels(), resolve("metal")),
    ],
)
def test_others_are_left_alone(func: tirx.PrimFunc, target: Target) -> None:
    assert rewritten(func, target).same_as(func)


def test_they_are_launched_to_overlap_and_their_pointers_may_alias() -> None:
    for func, overlaps in ((rewritten(two_kernels(), HOPPER), True), (two_kernels(), False)):
        host = HostPart(func, HOPPER)
        for rows, kernels in ((4, 1), (5, 2)):
            assert [one.overlaps for one in host.launches({"n": rows})] == kernels * [overlaps]
        # What is written while a kernel runs is not to be read as what never changes.
        assert ("__restrict__" in host.source) != overlaps


def test_a_kernel_that_lets_others_begin_but_does_not_wait_does_not_overlap() -> None:
    def emit() -> None:
        rows = size("n", "int64")
        y = tensor("y", (rows, 32))
        with T.launch_thread("blockIdx.x", rows) as row, T.launch_thread("threadIdx.x", 32) as thread:
            T.evaluate(T.ptx["griddepcontrol.launch_dependents"]())
            T.buffer_store(y, T.float32(1), [row, thread])

    (launch,) = HostPart(build("one", emit), HOPPER).launches({"n": 3})
    assert not launch.overlaps
