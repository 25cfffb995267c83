from __future__ import annotations

import pytest
import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes import pipeline
from awq_tvm.passes.add_decode_step import AddDecodeStep
from awq_tvm.passes.rewrite import Bindings
from awq_tvm.targets import resolve

from .modules import X86, exported, plan_of


def before_it(**options: bool) -> tvm.IRModule:
    return pipeline.run(exported(**options), X86, 2, until="add_decode_step")


def kernels(mod: tvm.IRModule, name: str) -> list[tuple[str, list[str]]]:
    """The scheduled functions that a function calls, in order, each with the weights that it gets."""
    found = []
    weights = set(plan_of(mod))
    for _, value in Bindings(mod, mod[name]):
        if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
            arguments = [a.name for a in value.args[1] if isinstance(a, relax.Var) and a.name in weights]
            found.append((value.args[0].name_hint, arguments))
    return found


@pytest.mark.parametrize("embedding", [False, True])
def test_it_calls_the_same_kernels_with_the_same_weights(embedding: bool) -> None:
    mod = before_it(embedding=embedding)
    found = AddDecodeStep()(mod)
    assert kernels(found, "decode") == kernels(found, "forward")
    assert len(kernels(found, "decode")) > 4
    tvm.ir.assert_structural_equal(found["forward"], mod["forward"])
    assert set(found.functions) - set(mod.functions) == {found.get_global_var("decode")}


def test_every_shape_is_known_and_the_positions_are_gone() -> None:
    found = AddDecodeStep()(before_it())
    decode, forward = found["decode"], found["forward"]
    inputs = int(forward.attrs["num_input"])
    names = [parameter.name for parameter in decode.params]
    assert names == [p.name for p in forward.params if p.name != "logit_positions"]
    assert names[inputs - 1 :] == list(plan_of(found))
    assert decode.attrs[ir_attrs.INPUTS] == inputs - 1
    assert not relax.analysis.free_symbolic_vars(decode)
    assert not relax.analysis.defined_symbolic_vars(decode)
    assert [int(extent) for extent in decode.ret_ty.shape] == [1, 40]
    takes = [v for _, v in Bindings(found, decode) if isinstance(v, relax.Call) and v.op.name == "relax.take"]
    assert all(int(t.args[0].ty.shape[0]) == 40 for t in takes)
    assert decode.attrs[ir_attrs.WORKSPACE] == "decode_workspace"


def test_every_target_has_it() -> None:
    for target in (X86, resolve("cuda"), resolve("metal")):
        assert "add_decode_step" in {name for name, _ in pipeline.passes(target, 2)}


def test_leaves_modules_without_a_model() -> None:
    mod = before_it()
    bare = tvm.IRModule({v: f for v, f in mod.functions.items() if v.name_hint != "forward"})
    tvm.ir.assert_structural_equal(AddDecodeStep()(bare), bare)
