"""What the host part of a kernel's function launches, read from its IR."""

from __future__ import annotations

import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.errors import UnsupportedError
from awq_tvm.targets import resolve

TARGET = resolve("cuda")


def function(loops: bool):
    """y = x + x through memory of its own, by as many threads as x is long; a second time in a loop of the host."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("double")
        length = IRBuilder.name("n", T.int64())
        handles = [T.arg(f"{name}_handle", T.handle()) for name in ("x", "y")]
        x, y = (T.match_buffer(handle, [length], "float32") for handle in handles)
        x, y = IRBuilder.name("x", x), IRBuilder.name("y", y)
        between = IRBuilder.name("between", T.alloc_buffer((1000,), "float32", scope="global"))
        seen = IRBuilder.name("seen", T.decl_buffer((1000,), "float32", data=between.data))

        def launch(source, into, times) -> None:
            with (
                T.launch_thread("blockIdx.x", (length + 31) // 32) as block,
                T.launch_thread("threadIdx.x", 32) as thread,
                T.If(block * 32 + thread < length),
                T.Then(),
            ):
                T.buffer_store(into, source[block * 32 + thread] * T.float32(times), [block * 32 + thread])

        launch(x, seen, 2)
        if loops:
            with T.serial(0, length):
                launch(seen, y, 1)
        else:
            with T.If(length > 40), T.Then():
                launch(seen, y, 1)
    return builder.get().with_attr("global_symbol", "double")


def test_launches_follow_the_extents() -> None:
    host = HostPart(function(loops=False), TARGET)
    # TVM passes the number of blocks too.
    assert "double_kernel_1(" in host.source
    assert host.workspaces == {"between": 4000}
    assert host.launches({"n": 33}) == (
        Launch("double_kernel", ("between", "x", 2, 33), (2, 1, 1), (32, 1, 1), 0),
    )
    first, second = host.launches({"n": 65})
    assert (first.blocks, second.kernel, second.arguments) == (3, "double_kernel_1", ("between", "y", 3, 65))


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(UnsupportedError, match="not understood") as error:
        HostPart(function(loops=True), TARGET).launches({"n": 3})
    assert "For" in error.value.why
