from __future__ import annotations

import tvm
from tvm import te

from awq_tvm import ir_attrs
from awq_tvm.passes.schedule_remaining import ScheduleRemaining
from awq_tvm.schedules.cpu.generic import schedule


def _doubled() -> tvm.tirx.PrimFunc:
    x = te.placeholder((te.var("n", "int64"), 32), "float32", "x")
    return te.create_prim_func([x, te.compute(x.shape, lambda i, j: x[i, j] * 2, "y")])


def test_schedules_and_marks_what_is_not_scheduled() -> None:
    found = ScheduleRemaining()(tvm.IRModule({"main": _doubled()}))["main"]
    tvm.ir.assert_structural_equal(found, schedule(_doubled()).with_attr(ir_attrs.IS_SCHEDULED, True))
    script = found.script()
    assert "T.parallel" in script
    assert "T.vectorized" in script


def test_leaves_what_is_marked() -> None:
    mod = tvm.IRModule({"main": _doubled().with_attr(ir_attrs.IS_SCHEDULED, True)})
    tvm.ir.assert_structural_equal(ScheduleRemaining()(mod), mod)
