from __future__ import annotations

import dataclasses
import json
from typing import TypeVar

import pytest
import tvm
from tvm.script import relax as R

from awq_tvm import ir_attrs
from awq_tvm.passes.add_candidates import NAME, AddCandidates
from awq_tvm.schedules.gpu.candidates import RECORD
from awq_tvm.targets import Target, resolve

m = TypeVar("m")


@R.function
def many(logits: R.Tensor((m, 4100), "float32"), kv_cache: R.Any):
    return (logits, kv_cache)


@R.function
def few(logits: R.Tensor((m, 64), "float32"), kv_cache: R.Any):
    return (logits, kv_cache)


def added(name: str, func: tvm.relax.Function, target: Target) -> tvm.IRModule:
    mod = tvm.IRModule({name: func.with_attr("global_symbol", name)})
    return AddCandidates(target)(mod.with_attr(ir_attrs.METADATA, json.dumps({"max_sequences": 3})))


@pytest.mark.parametrize("name", ["nvidia-a100", "metal"])
def test_rows_of_logits_become_records(name: str) -> None:
    mod = added("forward", many, resolve(name))
    find = mod[NAME]
    rows = find.params[0].ty.shape[0]
    assert [int(find.params[0].ty.shape[1]), len(find.params[1].ty.shape)] == [4100, 1]
    assert find.ret_ty.shape[0].same_as(rows) or find.ret_ty.shape[0].name == "m"
    assert int(find.ret_ty.shape[1]) == RECORD
    assert int(find.attrs["tir_var_upper_bound"]["m"]) == 3
    assert mod[f"{NAME}_kernels"].attrs[ir_attrs.IS_SCHEDULED]
    tvm.ir.assert_structural_equal(mod["forward"], many.with_attr("global_symbol", "forward"))


def test_leaves_alone_what_is_no_larger_and_other_warps() -> None:
    a100 = resolve("nvidia-a100")
    metal = resolve("metal")
    wide = dataclasses.replace(metal, warp_size=64, tvm_target={**metal.tvm_target, "thread_warp_size": 64})
    for name, func, target in (("forward", few, a100), ("other", many, a100), ("forward", many, wide)):
        assert len(added(name, func, target).functions) == 1
