"""Let the kernels of decoding begin before the launches before them have ended, on GPUs that can."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import tirx as T

from awq_tvm import ir_attrs
from awq_tvm.targets import Target


@tvm.transform.module_pass(opt_level=0, name="OverlapLaunches")
class OverlapLaunches:
    """Begin kernels with what lets the next one begin, and a wait for those before.

    Before::

        launch_thread("blockIdx.x", n); launch_thread("threadIdx.x", 128)
        y[...] = ...

    After::

        launch_thread("blockIdx.x", n); launch_thread("threadIdx.x", 128)
        griddepcontrol.launch_dependents
        griddepcontrol.wait
        y[...] = ...

    What has a wait is launched so that it may begin early (``toolchain/overlap.py``): blocks are placed, and begin to
    wait, while the last ones of the launch before still work. Matmuls do it themselves, and ask for weights first.

    Needs: to come after the passes that add kernels. Leaves alone: functions without ``ir_attrs.OVERLAPS``, and all
    on targets that have an architecture before 9.0.
    """

    def __init__(self, target: Target) -> None:
        """Take the target that the kernels are for."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite every function that is marked."""
        if not self.target.overlaps_launches:
            return mod
        updated = mod.clone()
        for variable, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and func.attrs and ir_attrs.OVERLAPS in func.attrs:
                updated[variable] = func.with_body(_begin_early(func.body))
        return updated


def _begin_early(statement: Any) -> Any:
    """The same with a beginning for every kernel; what is not known here is left, and launched as ever."""
    match statement:
        case tirx.AttrStmt():
            inside = statement.body
            last = statement.attr_key == "thread_extent" and not (
                isinstance(inside, tirx.AttrStmt) and inside.attr_key == "thread_extent"
            )
            body = tirx.SeqStmt([*_beginning(), inside]) if last else _begin_early(inside)
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
        case tirx.SeqStmt():
            return tirx.SeqStmt([_begin_early(one) for one in statement.seq])
        case tirx.IfThenElse():
            otherwise = None if statement.else_case is None else _begin_early(statement.else_case)
            return tirx.IfThenElse(statement.condition, _begin_early(statement.then_case), otherwise)
        case s_tir.SBlockRealize():
            block = statement.block
            body = s_tir.SBlock(
                block.iter_vars,
                block.reads,
                block.writes,
                block.name_hint,
                _begin_early(block.body),
                block.init,
                block.alloc_buffers,
                block.match_buffers,
                block.annotations,
            )
            return s_tir.SBlockRealize(statement.iter_values, statement.predicate, body)
    return statement


def _beginning() -> list[Any]:
    return [tirx.Evaluate(T.ptx[f"griddepcontrol.{action}"]()) for action in ("launch_dependents", "wait")]
