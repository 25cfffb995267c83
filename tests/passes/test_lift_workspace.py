from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import tvm
from tvm import relax
from tvm.script import relax as R

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain.lower import build_executable, lower_relax
from awq_tvm.passes.lift_workspace import LiftWorkspace
from awq_tvm.targets import resolve

n = TypeVar("n")
HERE = resolve("cpu").tvm_target_with_host


@R.function
def step(x: R.Tensor((1, 8), "float32"), w: R.Tensor((8,), "float32")):
    R.func_attr({"global_symbol": "step"})
    with R.dataflow():
        a = R.add(x, w)
        b = R.multiply(a, w)
        c = R.add(b, a)
        d = R.reshape(c, R.shape([2, 4]))
        e = R.add(d, d)
        R.output(e)
    return e


@R.function
def any_length(x: R.Tensor((n, 8), "float32"), w: R.Tensor((8,), "float32")):
    R.func_attr({"global_symbol": "any_length"})
    with R.dataflow():
        a = R.add(x, w)
        b = R.multiply(a, w)
        R.output(b)
    return b


def expected(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 2 * ((x + w) * w + (x + w)).reshape(2, 4)


def built(*functions: relax.Function) -> Any:
    mod = tvm.IRModule({f.attrs["global_symbol"]: f for f in functions})
    return build_executable(lower_relax(mod, HERE), HERE)


def calls(executable: Any, name: str) -> list[str]:
    """The functions that a function's bytecode calls, in order."""
    body = executable.as_text().partition(f"@{name}:\n")[2].partition("\n\n")[0]
    return [line.split()[1] for line in body.splitlines() if line.split()[:1] == ["call"]]


def planned(func: relax.Function) -> tvm.IRModule:
    """As TVM leaves it when LiftWorkspace runs."""
    before = [
        "LegalizeOps",
        "RewriteDataflowReshape",
        "ToNonDataflow",
        "RemovePurityChecking",
        "CallTIRRewrite",
    ]
    passes = [getattr(relax.transform, name)() for name in [*before, "StaticPlanBlockMemory"]]
    return tvm.transform.Sequential(passes)(tvm.IRModule({func.attrs["global_symbol"]: func}))


def test_a_lifted_function_computes_in_what_it_is_given() -> None:
    lifted = step.with_attr(ir_attrs.WORKSPACE, "step_workspace")
    executable = built(lifted)
    assert calls(built(step), "step").count("vm.builtin.alloc_tensor") == 4
    kernels = calls(executable, "step")
    assert len(kernels) == 4
    assert not [name for name in kernels if name.startswith("vm.builtin")]
    vm = relax.VirtualMachine(executable, tvm.cpu())
    workspace = vm["step_workspace"]()
    random = np.random.default_rng(0)
    for _ in range(2):
        x, w = random.normal(size=(1, 8)).astype("float32"), random.normal(size=8).astype("float32")
        found = vm["step"](tvm.runtime.tensor(x), tvm.runtime.tensor(w), *workspace)
        np.testing.assert_allclose(found.numpy(), expected(x, w), rtol=1e-6)
        # What is returned is one of the tensors, and the caller's own arguments are none.
        assert found.data_ptr() in [tensor.data_ptr() for tensor in workspace]


def test_tensors_that_live_one_after_the_other_share_storage() -> None:
    executable = built(step.with_attr(ir_attrs.WORKSPACE, "step_workspace"))
    made = calls(executable, "step_workspace")
    assert made.count("vm.builtin.alloc_storage") < made.count("vm.builtin.alloc_tensor")
    workspace = relax.VirtualMachine(executable, tvm.cpu())["step_workspace"]()
    places = [(tensor.data_ptr(), tuple(tensor.shape)) for tensor in workspace]
    assert len(set(places)) == len(places)


def test_leaves_functions_that_do_not_ask() -> None:
    mod = planned(step)
    tvm.ir.assert_structural_equal(LiftWorkspace()(mod), mod)


def test_leaves_functions_with_a_dimension_that_is_not_known() -> None:
    mod = planned(any_length.with_attr(ir_attrs.WORKSPACE, "any_length_workspace"))
    tvm.ir.assert_structural_equal(LiftWorkspace()(mod), mod)
