"""What every PrimFunc of a quantized weight has around its body: attributes, and the choice of a kernel by M."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm import ir_attrs
from awq_tvm.schedules.layout import Layout
from awq_tvm.schedules.spec import MatmulSpec

OPAQUE = 8
"""The operator pattern that TVM's own fusion leaves alone: these functions are the work of our passes."""


def attributes(op: str, spec: MatmulSpec, layout: Layout) -> dict[str, Any]:
    """By what passes and schedules recognise a function: one of ``ir_attrs``' ops, and what it computes on."""
    return {
        "op_pattern": OPAQUE,
        ir_attrs.OP: op,
        ir_attrs.BITS: spec.bits,
        ir_attrs.GROUP_SIZE: spec.group_size,
        ir_attrs.MATMUL_SPEC: spec.to_json(),
        ir_attrs.LAYOUT: layout.name,
    }


def scheduled_attributes(spec: MatmulSpec, layout: Layout, rule: str) -> dict[str, Any]:
    """Those of a fused matmul that has its kernels, from the rule of that name."""
    return {
        **attributes(ir_attrs.OP_DEQUANTIZE_MATMUL, spec, layout),
        ir_attrs.SCHEDULE: rule,
        ir_attrs.IS_SCHEDULED: True,
    }


def by_rows(
    rows: Any, bodies: Sequence[tuple[int, Callable[[], None]]], otherwise: Callable[[], None]
) -> None:
    """Emit the first body whose largest M is not exceeded.

    Args:
        rows: M, at least 1.
        bodies: (largest M, what emits the statements) in rising order.
        otherwise: emits the statements for larger M.
    """
    if not bodies:
        otherwise()
        return
    (largest, body), *rest = bodies
    with T.If(rows <= largest):
        with T.Then():
            body()
        with T.Else():
            by_rows(rows, rest, otherwise)
