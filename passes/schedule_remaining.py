"""Schedule what no kernel family serves: norms, activations, lookups, fallbacks."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from awq_tvm import ir_attrs
from awq_tvm.schedules.cpu.generic import schedule


@tvm.transform.module_pass(opt_level=0, name="ScheduleRemaining")
class ScheduleRemaining:
    """The generic CPU schedule for every PrimFunc that is not scheduled yet.

    Before::

        for i, j in grid(n, 576): ...

    After::

        for i in parallel(n): for j in 36: for lane in vectorized(16): ...

    Needs: AttachSchedules and TVM's own fusion. Leaves alone: functions marked as scheduled. GPUs do not need it:
    TVM's pipeline for them schedules what is left.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Replace PrimFuncs."""
        updated = mod.clone()
        for variable, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not _is_done(func):
                updated[variable] = schedule(func).with_attr(ir_attrs.IS_SCHEDULED, True)
        return updated


def _is_done(func: tirx.PrimFunc) -> bool:
    return bool(func.attrs is not None and func.attrs.get(ir_attrs.IS_SCHEDULED))
