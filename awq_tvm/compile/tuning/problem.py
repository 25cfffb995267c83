"""What is tuned: one linear or attention kernel on one target, with the schedule family that serves it there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from awq_tvm import ir_attrs
from awq_tvm.compile.tuning.record import Activations, KernelKey, name_of_rows
from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.config_fields import from_fields
from awq_tvm.schedules.rule import (
    Match,
    Part,
    Rule,
    Unserved,
    attention_rule_for,
    dense_rules_for,
    rules_for,
    select,
    select_dense,
)
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target

Spec = MatmulSpec | DenseSpec | AttentionSpec
_SPECS: dict[str, type[Spec]] = {"matmul": MatmulSpec, "dense": DenseSpec, "attention": AttentionSpec}
WEIGHT_BITS = {"float16": 16, "bfloat16": 16, "float32": 32}


@dataclass(frozen=True)
class Problem:
    """A linear, or an attention kernel; what is done to a linear's input and sums does not change the tiles.

    Args:
        spec: the linear or the kernel.
        target: what it runs on.
        rule: name of the family.
    """

    spec: Spec
    target: Target
    rule: str

    @staticmethod
    def of(spec: Spec, target: Target) -> Problem | None:
        """The problem of a linear or a kernel; None where no family serves it, or one without anything to choose."""
        if isinstance(spec, MatmulSpec):
            spec = plain(spec)
            chosen = select(spec, target)
            found = None if isinstance(chosen, Unserved) else Problem(spec, target, chosen.rule.name)
        elif isinstance(spec, AttentionSpec):
            rule = attention_rule_for(target)
            found = None if rule is None else Problem(spec, target, rule.name)
        else:
            dense = select_dense(spec, target)
            found = None if dense is None else Problem(spec, target, dense.rule.name)
        return found if found is not None and found.parts else None

    @cached_property
    def family(self) -> Any:
        """The rule itself, a ``Rule``.

        Raises:
            UnsupportedError: the target has no rule of that name.
        """
        rules: Sequence[Rule | None]
        if isinstance(self.spec, AttentionSpec):
            rules = [attention_rule_for(self.target)]
        elif isinstance(self.spec, MatmulSpec):
            rules = rules_for(self.target)
        else:
            rules = dense_rules_for(self.target)
        for rule in rules:
            if rule is not None and rule.name == self.rule:
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
        spec = self.spec
        common = {
            "target": self.target.fingerprint,
            "rule": self.rule,
            "rule_version": self.family.version,
            "rows": name_of_rows(part.first_rows, part.last_rows),
        }
        if isinstance(spec, AttentionSpec):
            shape = spec.shape
            window = "" if shape.sliding_window is None else "-window"
            return KernelKey(
                op=f"{ir_attrs.OP_ATTENTION}_{spec.kernel}",
                # Tiles are made for a head and those that share it; how many of these there are is only the shape.
                layout=f"pages-{shape.dtype}-d{shape.head_dim}-g{shape.group}{window}",
                weights=shape.page_dtype,
                bits=spec.bits,
                group_size=0,
                activations="float",
                in_features=shape.kv_heads * shape.head_dim,
                out_features=shape.heads * shape.head_dim,
                **common,
            )
        common["layout"] = self.family.layout(spec, self.target).name
        common |= {"in_features": spec.in_features, "out_features": spec.out_features}
        if isinstance(spec, DenseSpec):
            return KernelKey(
                op=ir_attrs.OP_DENSE_MATMUL,
                weights=spec.weight_dtype,
                bits=WEIGHT_BITS[spec.weight_dtype],
                group_size=0,
                activations=self._activations,
                **common,
            )
        return KernelKey(
            op=ir_attrs.OP_DEQUANTIZE_MATMUL,
            weights="codes",
            bits=spec.bits,
            group_size=spec.group_size,
            activations=self._activations,
            **common,
        )

    @property
    def _activations(self) -> Activations:
        """What a key calls a linear's: only those that somebody has to ask for are named."""
        spec = self.spec
        if isinstance(spec, MatmulSpec) and spec.activations == "int8":
            return "int8"
        return "bfloat16" if not isinstance(spec, AttentionSpec) and spec.dtype == "bfloat16" else "float"

    @property
    def is_linear(self) -> bool:
        """Other machines than this one measure linears only."""
        return not isinstance(self.spec, AttentionSpec)

    @property
    def title(self) -> str:
        """The linear or the kernel in words."""
        spec = self.spec
        if isinstance(spec, AttentionSpec):
            return spec.title
        shape = f"{spec.out_features}x{spec.in_features}"
        if isinstance(spec, DenseSpec):
            return f"{shape} {spec.weight_dtype}"
        return f"{shape} w{spec.bits} g{spec.group_size} {self._activations}"

    def to_json(self) -> str:
        """All of it as one line, for another process."""
        kind = next(name for name, kind in _SPECS.items() if isinstance(self.spec, kind))
        return json.dumps(
            {"kind": kind, "spec": asdict(self.spec), "target": self.target.as_dict(), "rule": self.rule}
        )

    @staticmethod
    def from_json(text: str) -> Problem:
        """Read back what ``to_json`` wrote."""
        found = json.loads(text)
        return Problem(
            _SPECS[found["kind"]].from_dict(found["spec"]), Target.from_dict(found["target"]), found["rule"]
        )


def plain(spec: MatmulSpec) -> MatmulSpec:
    """The linear without what is done to its input and to its sums."""
    bare = replace(spec, rms_norm_eps=None, gate=None, output_gate=None)
    return replace(bare, has_bias=False, activation_function=None, has_residual=False)
