"""What is tuned: one linear on one target, with the schedule family that serves it there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from awq_tvm import ir_attrs
from awq_tvm.compile.tuning.record import KernelKey, name_of_rows
from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.config_fields import from_fields
from awq_tvm.schedules.rule import (
    DenseRule,
    Match,
    MatmulRule,
    Part,
    Unserved,
    dense_rules_for,
    rules_for,
    select,
    select_dense,
)
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target

WEIGHT_BITS = {"float16": 16, "bfloat16": 16, "float32": 32}


@dataclass(frozen=True)
class Problem:
    """A linear, without what is done to its input and its sums: that does not change the tiles.

    Args:
        spec: the linear.
        target: what it runs on.
        rule: name of the family.
    """

    spec: MatmulSpec | DenseSpec
    target: Target
    rule: str

    @staticmethod
    def of(spec: MatmulSpec | DenseSpec, target: Target) -> Problem | None:
        """The problem of a linear; None where no family serves it, or one without anything to choose."""
        if isinstance(spec, MatmulSpec):
            spec = plain(spec)
            chosen = select(spec, target)
            found = None if isinstance(chosen, Unserved) else Problem(spec, target, chosen.rule.name)
        else:
            dense = select_dense(spec, target)
            found = None if dense is None else Problem(spec, target, dense.rule.name)
        return found if found is not None and found.parts else None

    @cached_property
    def family(self) -> Any:
        """The rule itself, a ``MatmulRule`` or a ``DenseRule``.

        Raises:
            UnsupportedError: the target has no rule of that name.
        """
        rules: tuple[MatmulRule | DenseRule, ...] = (
            rules_for(self.target) if isinstance(self.spec, MatmulSpec) else dense_rules_for(self.target)
        )
        for rule in rules:
            if rule.name == self.rule:
                return rule
        raise UnsupportedError(f"There is no schedule family {self.rule!r}", where=self.target.name)

    @cached_property
    def default(self) -> Any:
        """The family's configuration when nothing was tuned.

        Raises:
            UnsupportedError: the family does not serve the linear.
        """
        answer = self.family.applies(self.spec, self.target)
        if not isinstance(answer, Match):
            raise UnsupportedError(f"{self.rule} does not serve this linear", why=answer.reason)
        return answer.config

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The ranges of M and their candidates."""
        found: tuple[Part, ...] = self.family.space(self.spec, self.target)
        return found

    def build(self, fields: dict[str, Any]) -> Any:
        """The PrimFunc for every M, its default configuration changed by fields.

        Raises:
            UnsupportedError: the fields do not fit.
        """
        allowed = [name for part in self.parts for name in part.fields]
        return self.family.build(self.spec, self.target, from_fields(self.default, fields, allowed))

    def key(self, part: Part) -> KernelKey:
        """What records call one part of this problem."""
        spec, layout = self.spec, self.family.layout(self.spec, self.target).name
        common = {
            "target": self.target.fingerprint,
            "rule": self.rule,
            "rule_version": self.family.version,
            "layout": layout,
            "in_features": spec.in_features,
            "out_features": spec.out_features,
            "rows": name_of_rows(part.first_rows, part.last_rows),
        }
        if isinstance(spec, DenseSpec):
            return KernelKey(
                op=ir_attrs.OP_DENSE_MATMUL,
                weights=spec.weight_dtype,
                bits=WEIGHT_BITS[spec.weight_dtype],
                group_size=0,
                activations="float",
                **common,
            )
        return KernelKey(
            op=ir_attrs.OP_DEQUANTIZE_MATMUL,
            weights="codes",
            bits=spec.bits,
            group_size=spec.group_size,
            activations="int8" if spec.activations == "int8" else "float",
            **common,
        )

    @property
    def title(self) -> str:
        """The linear in words."""
        spec = self.spec
        shape = f"{spec.out_features}x{spec.in_features}"
        if isinstance(spec, DenseSpec):
            return f"{shape} {spec.weight_dtype}"
        return f"{shape} w{spec.bits} g{spec.group_size} {spec.activations}"

    def to_json(self) -> str:
        """All of it as one line, for another process."""
        kind = "dense" if isinstance(self.spec, DenseSpec) else "matmul"
        return json.dumps(
            {"kind": kind, "spec": asdict(self.spec), "target": self.target.as_dict(), "rule": self.rule}
        )

    @staticmethod
    def from_json(text: str) -> Problem:
        """Read back what ``to_json`` wrote."""
        found = json.loads(text)
        spec = DenseSpec(**found["spec"]) if found["kind"] == "dense" else MatmulSpec(**found["spec"])
        return Problem(spec, Target.from_dict(found["target"]), found["rule"])


def plain(spec: MatmulSpec) -> MatmulSpec:
    """The linear without what is done to its input and to its sums."""
    bare = replace(spec, rms_norm_eps=None, gate=None)
    return replace(bare, has_bias=False, activation_function=None, has_residual=False)
