from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.script import relax as R

from awq_tvm import ir_attrs
from awq_tvm.passes.capture_graphs import CaptureGraphs
from awq_tvm.passes.lift_workspace import LiftWorkspace


@R.function
def step(x: R.Tensor((8,), "float32"), w: R.Tensor((8,), "float32"), cache: R.Any):
    R.func_attr({"global_symbol": "step", "awq.workspace": "step_workspace"})
    with R.dataflow():
        a = R.add(x, w)
        b = R.call_dps_packed("test.cache", (cache, a), out_ty=R.Tensor((8,), "float32"))
        c = R.multiply(b, w)
        d = R.subtract(c, b)
        e = R.call_dps_packed("test.cache", (cache, d), out_ty=R.Tensor((8,), "float32"))
        f = R.add(e, w)
        g = R.multiply(f, f)
        h = R.add(g, f)
        R.output(h)
    return h


def lowered(func: relax.Function) -> tvm.IRModule:
    names = [
        "LegalizeOps",
        "ToNonDataflow",
        "RemovePurityChecking",
        "CallTIRRewrite",
        "StaticPlanBlockMemory",
    ]
    passes = [getattr(relax.transform, name)() for name in names]
    return tvm.transform.Sequential([*passes, LiftWorkspace()])(tvm.IRModule({"step": func}))


def calls(func: relax.Function) -> list[Any]:
    return [binding.value for block in func.body.blocks for binding in block.bindings]


def callees(func: relax.Function) -> list[str]:
    """Of each call its function; of one with the machine as an argument, the function that gets that."""
    ops = [call.op if isinstance(call.op, relax.ExternFunc) else call.args[0] for call in calls(func)]
    return [op.global_symbol for op in ops]


def test_runs_of_kernels_become_graphs() -> None:
    before = lowered(step)
    after = CaptureGraphs()(before)
    tvm.ir.assert_structural_equal(after["step"], before["step"])
    run = "vm.builtin.cuda_graph.run_or_capture"
    # One kernel for itself is launched as it is.
    assert callees(after["step_in_graphs"]) == ["add", "test.cache", run, "test.cache", run]
    assert callees(after["step_graph0"]) == ["multiply", "subtract"]
    assert callees(after["step_graph1"]) == ["add", "multiply", "add"]
    launches = [call for call in calls(after["step_in_graphs"]) if isinstance(call.op, tvm.ir.Op)]
    given = [[argument.name for argument in launch.args[1].fields[1].fields] for launch in launches]
    assert [len(set(names)) for names in given] == [len(names) for names in given]
    parameters = {p.name for p in after["step_in_graphs"].params}
    assert all(parameters.issuperset(names) for names in given)
    assert [int(launch.args[1].fields[2].value) for launch in launches] == [0, 1]


def test_leaves_alone_what_allocates() -> None:
    func = step.without_attr(ir_attrs.WORKSPACE)
    before = lowered(func)
    tvm.ir.assert_structural_equal(CaptureGraphs()(before), before)


def test_graphs_of_two_functions_have_numbers_of_their_own() -> None:
    before = lowered(step)
    before["other"] = relax.utils.copy_with_new_vars(before["step"]).with_attr("global_symbol", "other")
    after = CaptureGraphs()(before)
    launches = [call for name in ("step", "other") for call in calls(after[f"{name}_in_graphs"])]
    numbers = [int(c.args[1].fields[2].value) for c in launches if isinstance(c.op, tvm.ir.Op)]
    assert sorted(numbers) == [0, 1, 2, 3]
