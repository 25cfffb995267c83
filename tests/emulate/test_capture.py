"""What a CUDA driver refuses while a graph is captured, the emulator refuses too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tvm
from tvm import relax
from tvm.script import relax as R

from awq_tvm.compile.toolchain import build_library
from awq_tvm.targets import resolve
from tests.emulate.test_bundles import needs_this_machine

pytestmark = needs_this_machine


@R.function
def doubled(x: R.Tensor((64,), "float32")):
    return R.add(x, x)


def captures_an_allocation() -> tvm.IRModule:
    """A function that captures another whose result is allocated in it."""
    builder = relax.BlockBuilder()
    captured = builder.add_func(doubled.with_attr("global_symbol", "doubled"), "doubled")
    x = relax.Var("x", relax.TensorType((64,), "float32"))
    with builder.function("main", [x], pure=False):
        arguments = [captured, relax.Tuple([x]), relax.prim_value(0)]
        name = "vm.builtin.cuda_graph.run_or_capture"
        found = builder.emit(relax.op.call_builtin_with_ctx(name, arguments, ty_args=relax.AnyType()))
        builder.emit_func_output(found)
    return builder.finalize()


def test_memory_allocated_during_a_capture_is_an_error(tmp_path: Path) -> None:
    built = build_library(captures_an_allocation(), resolve("nvidia-a100"), tmp_path, source_only=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.emulated_main", str(built.path), str(tmp_path / "kernels.cu")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The first call runs the function before it captures it, and there it may: what was made then is still in use.
    assert "emulator: memory is allocated while a graph is captured" in done.stdout
