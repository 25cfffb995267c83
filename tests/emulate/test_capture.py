"""What a CUDA driver refuses while a graph is captured, the emulator refuses too."""

from __future__ import annotations

import json
from pathlib import Path

import tvm
from tvm import relax
from tvm.script import relax as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain import build_library
from awq_tvm.schedules.frame import OPAQUE
from awq_tvm.targets import resolve
from tests.emulate.test_bundles import needs_this_machine
from tests.support.child import output_of

pytestmark = needs_this_machine


@R.function
def doubled(x: R.Tensor((64,), "float32")):
    return R.add(x, x)


# What it does is up to the child that runs it.
@R.function(pure=False)
def planted(x: R.Tensor((64,), "float32")):
    return R.call_packed("tests.planted", x, ty_args=R.Tensor((64,), "float32"))


def captures(function: relax.Function) -> tvm.IRModule:
    """A function that captures another, of 64 numbers, as the virtual machine has it."""
    builder = relax.BlockBuilder()
    captured = builder.add_func(function.with_attr("global_symbol", "captured"), "captured")
    x = relax.Var("x", relax.TensorType((64,), "float32"))
    with builder.function("main", [x], pure=False):
        # Of a module without kernels there is no source.
        given = builder.emit(relax.op.add(x, x))
        arguments = [captured, relax.Tuple([given]), relax.prim_value(0)]
        name = "vm.builtin.cuda_graph.run_or_capture"
        found = builder.emit(relax.op.call_builtin_with_ctx(name, arguments, ty_args=relax.AnyType()))
        builder.emit_func_output(found)
    return builder.finalize()


def twice() -> tvm.tirx.PrimFunc:
    """y = 2 x, which takes memory for itself whatever M is, and gives it to its kernels where M is not 1."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.is_scheduled": True, "global_symbol": "twice", "op_pattern": OPAQUE})
        m = IRBuilder.name("m", T.int64())
        handles = [T.arg(f"{name}_handle", T.handle()) for name in "xy"]
        x, y = (T.match_buffer(handle, (m,), "float32") for handle in handles)
        memory = IRBuilder.name("memory", T.alloc_buffer((4096,), "float32", scope="global"))
        with T.If(m == 1):
            with T.Then(), T.launch_thread("blockIdx.x", m) as i, T.launch_thread("threadIdx.x", 1):
                T.buffer_store(y, x[i] + x[i], [i])
            with T.Else():
                with T.launch_thread("blockIdx.x", m) as i, T.launch_thread("threadIdx.x", 1):
                    T.buffer_store(memory, x[i] + x[i], [i])
                with T.launch_thread("blockIdx.x", m) as i, T.launch_thread("threadIdx.x", 1):
                    T.buffer_store(y, memory[i], [i])
    return builder.get()


def four_times(length: int) -> tvm.IRModule:
    """``main``, of which the compiler makes ``main_in_graphs``."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(twice(), "twice")
    x = relax.Var("x", relax.TensorType((length,), "float32"))
    with builder.function("main", [x], attrs={ir_attrs.WORKSPACE: "main_workspace"}):
        # In no dataflow block: TVM would look there whether the function is a reshape.
        y = builder.emit(relax.call_tir(kernel, (x,), relax.TensorType((length,), "float32")))
        z = builder.emit(relax.call_tir(kernel, (y,), relax.TensorType((length,), "float32")))
        builder.emit_func_output(z)
    return builder.finalize()


def said(mod: tvm.IRModule, folder: Path, *length: int, by: str = "tests.support.emulated_main") -> str:
    built = build_library(mod, resolve("nvidia-a100"), folder, source_only=True)
    return output_of(by, built.path, folder / "kernels.cu", *length)


def test_temporary_memory_that_no_kernel_is_given_may_be_taken(tmp_path: Path) -> None:
    """TVM has pages of it since the call before the capture, and asks the driver for nothing."""
    assert said(four_times(1), tmp_path, 1) == "[4.0]\n[4.0]\n0\n"


def test_temporary_memory_in_a_graph_is_an_error(tmp_path: Path) -> None:
    assert "a graph would keep temporary memory" in said(four_times(64), tmp_path, 64)


def test_memory_allocated_during_a_capture_is_an_error(tmp_path: Path) -> None:
    # The first call runs the function before it captures it, and there it may: what was made then is still in use.
    found = said(captures(doubled), tmp_path, 64)
    assert "emulator: memory is allocated while a graph is captured" in found


def test_what_a_driver_refuses_is_an_error(tmp_path: Path) -> None:
    """Done by a function that the captured one calls; where that does nothing, nothing is said."""
    lines = said(captures(planted), tmp_path, by="tests.support.emulated_captures").splitlines()
    found = json.loads(lines[-1])
    assert found.pop("nothing") == ""
    assert {fault: text.partition("emulator: ")[2].splitlines()[:1] for fault, text in found.items()} == {
        "copy": ["memory is copied while a graph is captured"],
        "synchronize": ["the stream is waited for while a graph is captured"],
        "free": ["memory is freed while a graph is captured"],
    }
