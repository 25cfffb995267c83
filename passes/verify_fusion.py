"""Fail the build where a quantized weight would be dequantized into memory."""

from __future__ import annotations

from typing import Any

import tvm

from awq_tvm import ir_attrs
from awq_tvm.errors import UnsupportedError
from awq_tvm.passes.rewrite import Bindings
from awq_tvm.schedules.parameter_plan import ParameterPlan


@tvm.transform.module_pass(opt_level=0, name="VerifyFusion")
class VerifyFusion:
    """Check that no dequantize PrimFunc is called any more; the module is returned as it is.

    Needs: FuseDequantizeMatmul, FuseDequantizeTake.

    Raises:
        UnsupportedError: a quantized weight is left unfused; the message names every such layer.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Check ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
        unfused: list[str] = []
        for _, value in bindings:
            found = bindings.prim_func(value, ir_attrs.OP_DEQUANTIZE)
            if found is not None:
                name = found[0].args[1][0].name
                unfused += plan.dense(name).tensors if plan.is_dense(name) else plan.quantized(name).modules
        if unfused:
            raise UnsupportedError(
                "a quantized weight was not fused into the operation that uses it",
                where=", ".join(unfused),
                why="it would be dequantized into memory on every call",
                fix="compile with --opt 0 to run it unfused, or report the layer",
            )
        return mod
