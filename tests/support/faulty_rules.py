"""A schedule family whose candidates hang, abort, crash, compute wrong numbers, or cannot be built.

It registers itself where it is imported, and serves linears of 88 inputs in groups of 8 only, so that no other test
meets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.reference import dequantize_matmul
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable, Part, register, rules_for
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, detect

FAULTS = ("none", "hang", "abort", "segfault", "exit", "wrong", "nan", "refused")
TOLD = (
    ("abort", "died", "SIGABRT"),
    ("segfault", "died", "SIGSEGV"),
    ("exit", "died", "ended with code 0"),
    ("wrong", "wrong", "at M = 1"),
    ("nan", "wrong", "off by nan"),
    ("refused", "refused", "this candidate cannot be built"),
)
"""Of each fault that does not take its time, what kind it is and what is said of it."""


@dataclass(frozen=True)
class FaultyConfig:
    """What goes wrong."""

    fault: str = "none"


class FaultyRule(MatmulRule):
    """The reference itself, spoiled."""

    name = "test.faulty"
    version = 1

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        if (spec.in_features, spec.group_size) == (88, 8):
            return Match(FaultyConfig())
        return NotApplicable("this family is for tests of the tuner")

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        return LAYOUTS["row"]

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        return (Part(1, None, ("fault",), tuple(map(FaultyConfig, FAULTS)), (2, 5), (1, 2, 5)),)

    def build(self, spec: MatmulSpec, target: Target, config: FaultyConfig) -> Any:
        if config.fault == "refused":
            raise UnsupportedError("this candidate cannot be built")
        if config.fault == "none":
            return dequantize_matmul(spec, LAYOUTS["row"])
        return spoiled(spec, config.fault)


def spoiled(spec: MatmulSpec, fault: str) -> Any:
    """A function of the same parameters that does something else."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("spoiled")
        rows = T.int64()
        x = T.match_buffer(T.arg("x", T.handle()), (rows, spec.in_features), "float32")
        for array in LAYOUTS["row"].arrays(spec):
            T.match_buffer(T.arg(array.suffix, T.handle()), array.shape, array.dtype)
        y = T.match_buffer(T.arg("y", T.handle()), (rows, spec.out_features), "float32")
        if fault == "hang":
            with T.While(T.call_extern("int32", "usleep", 1000) == 0):
                T.evaluate(0)
        elif fault == "abort":
            T.evaluate(T.call_extern("int32", "abort"))
        elif fault == "segfault":
            T.evaluate(T.call_extern("int32", "raise", 11))
        elif fault == "exit":
            T.evaluate(T.call_extern("int32", "_exit", 0))
        value = T.float32(float("nan")) if fault == "nan" else x[0, 0]
        with T.serial(0, rows) as i, T.serial(0, spec.out_features) as j:
            T.buffer_store(y, value, [i, j])
    return builder.get().without_attr("global_symbol")


rules_for(detect())  # the real families first
for _family in ("x86", "arm"):
    register(_family, FaultyRule())
