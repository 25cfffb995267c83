"""Schedules for whatever is not a matmul or attention: norms, activations, lookups, sums, copies.

The op: any PrimFunc of elementwise blocks and row reductions. The roof: memory bandwidth. Elementwise blocks are
inlined into their consumers, a row's reduction is computed beside its use, rows are shared out over the cores and
the innermost axis is vectorised.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

_LANES = 16


def schedule(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with its blocks inlined, parallel over rows and vectorised; unchanged where that fails.

    One row stays on one thread: waking the others takes longer than the work of one token.
    """
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        _inline_elementwise(sch)
        rows = _schedule_blocks(sch)
    except ScheduleError:
        return func
    serial = sch.mod["main"]
    if rows is None:
        return serial
    count = sch.get(rows).extent
    sch.parallel(rows)
    return serial if isinstance(count, tirx.IntImm) else _either(count == 1, serial, sch.mod["main"])


def _either(condition: Any, then: tirx.PrimFunc, otherwise: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function that is one of two schedules of the same function, which share their buffers."""
    first, second = then.body.block, otherwise.body.block
    branches = tirx.IfThenElse(condition, first.body, second.body)
    root = s_tir.SBlock([], [], [], "root", branches, alloc_buffers=first.alloc_buffers)
    whole = then.with_body(s_tir.SBlockRealize([], tirx.const(True, "bool"), root))
    # The branches came from one function and still share their loop variables.
    return s_tir.transform.ConvertSSA()(tvm.IRModule({"main": whole}))["main"]


def _inline_elementwise(sch: s_tir.Schedule) -> None:
    """Compute every elementwise intermediate where it is used."""
    for block in _blocks(sch):
        if _is_reduction(sch, block) or not sch.get_consumers(block):
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:
            # Not elementwise in its consumer's eyes (a take with computed indices, say): it stays a stage.
            continue


def _schedule_blocks(sch: s_tir.Schedule) -> Any:
    """Put each row's reductions beside their use and vectorise columns.

    Returns:
        The loop over rows, to be shared out, or None where there is none.
    """
    *producers, last = _blocks(sch)
    rows = sch.get_loops(last)[0] if sch.get_loops(last) else None
    if rows is None:
        return None
    for block in reversed(producers):
        try:
            sch.compute_at(block, rows)
        except ScheduleError:
            _parallel_rows(sch, block)
    columns = sch.get_loops(last)[1:]
    if columns and not _is_reduction(sch, last):
        _vectorize(sch, columns)
    return rows


def _parallel_rows(sch: s_tir.Schedule, block: Any) -> None:
    loops = sch.get_loops(block)
    if loops and not _is_reduction(sch, block):
        sch.parallel(loops[0])


def _vectorize(sch: s_tir.Schedule, columns: list[Any]) -> None:
    innermost = columns[-1]
    extent = sch.get(innermost).extent
    if isinstance(extent, tirx.IntImm) and extent.value % _LANES == 0:
        _, lanes = sch.split(innermost, [None, _LANES])
        sch.vectorize(lanes)


def _blocks(sch: s_tir.Schedule) -> list[Any]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _is_reduction(sch: s_tir.Schedule, block: Any) -> bool:
    return any(var.iter_type == tirx.IterVar.CommReduce for var in sch.get(block).iter_vars)
