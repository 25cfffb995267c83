"""The registry where a schedule family plugs in: the one place that knows which kernel serves a linear."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from awq_tvm.schedules.attention.rule import AttentionSpec
    from awq_tvm.schedules.layout import DenseLayout, Layout
    from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
    from awq_tvm.targets import Target

    Spec: TypeAlias = MatmulSpec | DenseSpec | AttentionSpec


@dataclass(frozen=True)
class NotApplicable:
    """A rule's answer when it cannot serve a linear, with the reason in words for ``compile --explain``."""

    reason: str


@dataclass(frozen=True)
class Match:
    """A rule's answer when it can: the configuration it would use by default."""

    config: Any


@dataclass(frozen=True)
class Part:
    """One range of M, which is tuned by itself, and what could serve it.

    Args:
        first_rows: the smallest M.
        last_rows: the largest, None for no end.
        fields: names of the configuration's fields that decide about this range and no other.
        configs: what to try, the default first and then what is thought fastest; they differ in ``fields`` only.
        timed_rows: M that stand for the range when candidates are timed.
        checked_rows: at these their numbers are checked too.
        refined: fields, of nested ones the inner name, that matter less: a search tries one value of these for each
            of the others first.
        rounds_weights: its kernels multiply (q - z) * scale rounded to the linear's dtype, and not exact weights.
    """

    first_rows: int
    last_rows: int | None
    fields: tuple[str, ...]
    configs: tuple[Any, ...]
    timed_rows: tuple[int, ...]
    checked_rows: tuple[int, ...]
    refined: tuple[str, ...] = ()
    rounds_weights: bool = False


class MatmulRule(ABC):
    """A schedule family for the fused dequantize-matmul on one kind of hardware.

    Attributes:
        name: by which bundles, records and ``compile --explain`` call it.
        version: of its configurations; records of another are not used.
        has_prologues: its kernels can normalise or gate x themselves.
        gates_outputs: its kernels can gate neighbouring sums.
    """

    name: str
    version: int
    has_prologues: bool = False
    gates_outputs: bool = False

    @abstractmethod
    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """Whether this family serves the spec on the target."""

    @abstractmethod
    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """The weight layout that all kernels of this family share."""

    @abstractmethod
    def build(self, spec: MatmulSpec, target: Target, config: Any) -> Any:
        """The scheduled PrimFunc for every M, parameters in the order that ``MatmulSpec`` states."""

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """What a tuner can choose; nothing where a family has but one configuration. ``applies`` was a match."""
        return ()


class DenseRule(ABC):
    """A schedule family for matmuls with an unquantized weight, the LM head above all."""

    name: str
    version: int

    @abstractmethod
    def applies(self, spec: DenseSpec, target: Target) -> Match | NotApplicable:
        """Whether this family serves the spec on the target."""

    @abstractmethod
    def layout(self, spec: DenseSpec, target: Target) -> DenseLayout:
        """The weight layout that the family's kernels read."""

    @abstractmethod
    def build(self, spec: DenseSpec, target: Target, config: Any) -> Any:
        """The scheduled PrimFunc for every M, parameters in the order that ``DenseSpec`` states."""

    def space(self, spec: DenseSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        return ()


class AttentionRule(ABC):
    """A schedule family for the attention kernels of a paged cache; a target has one or none."""

    name: str
    version: int

    @abstractmethod
    def applies(self, spec: AttentionSpec, target: Target) -> Match:
        """The configuration of the kernel when nothing was tuned."""

    @abstractmethod
    def build(self, spec: AttentionSpec, target: Target, config: Any) -> Any:
        """The scheduled PrimFunc, parameters as the cache runtime passes them."""

    @abstractmethod
    def space(self, spec: AttentionSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""


Rule = MatmulRule | DenseRule | AttentionRule

_RULES: dict[str, list[MatmulRule]] = {}
_DENSE_RULES: dict[str, list[DenseRule]] = {}
_ATTENTION_RULES: dict[str, AttentionRule] = {}


def register(family: str, rule: MatmulRule) -> None:
    """Add a rule for a target family ("x86", "arm", "cuda", "metal"); earlier rules are asked first."""
    _RULES.setdefault(family, []).append(rule)


def register_dense(family: str, rule: DenseRule) -> None:
    """Add a rule for unquantized matmuls of a target family; earlier rules are asked first."""
    _DENSE_RULES.setdefault(family, []).append(rule)


def register_attention(family: str, rule: AttentionRule) -> None:
    """Name the rule for attention of a target family."""
    _ATTENTION_RULES[family] = rule


def rules_for(target: Target) -> tuple[MatmulRule, ...]:
    """The rules of the target's family, in the order in which they are asked."""
    import awq_tvm.schedules.families  # noqa: F401  (registers every family on first use)

    return tuple(_RULES.get(target.family, ()))


def dense_rules_for(target: Target) -> tuple[DenseRule, ...]:
    """The rules for unquantized matmuls of the target's family, in the order in which they are asked."""
    rules_for(target)
    return tuple(_DENSE_RULES.get(target.family, ()))


def attention_rule_for(target: Target) -> AttentionRule | None:
    """The rule for attention of the target's family, or None: TVM's own kernels do it then."""
    rules_for(target)
    return _ATTENTION_RULES.get(target.family)


def versions(family: str) -> dict[str, int]:
    """The version of every rule of a target family, by name."""
    import awq_tvm.schedules.families  # noqa: F401  (registers every family on first use)

    attention = [_ATTENTION_RULES[family]] if family in _ATTENTION_RULES else []
    rules: list[Rule] = [*_RULES.get(family, ()), *_DENSE_RULES.get(family, ()), *attention]
    return {rule.name: rule.version for rule in rules}


class Chosen(NamedTuple):
    """The rule that serves a linear, and its answer."""

    rule: MatmulRule
    match: Match


class Unserved(NamedTuple):
    """That no rule serves a linear, with each rule's reason."""

    rule: None
    reasons: tuple[str, ...]


def select(spec: MatmulSpec, target: Target) -> Chosen | Unserved:
    """The first rule that serves the spec, or the reasons why none does."""
    reasons = []
    for rule in rules_for(target):
        answer = rule.applies(spec, target)
        if spec.has_prologue and not rule.has_prologues:
            answer = NotApplicable("its kernels take x as it is")
        if spec.output_gate is not None and not rule.gates_outputs:
            answer = NotApplicable("its kernels leave the sums to be gated by another")
        if isinstance(answer, Match):
            return Chosen(rule, answer)
        reasons.append(f"{rule.name}: {answer.reason}")
    return Unserved(None, tuple(reasons))


class ChosenDense(NamedTuple):
    """The rule that serves an unquantized matmul, and its answer."""

    rule: DenseRule
    match: Match


def select_dense(spec: DenseSpec, target: Target) -> ChosenDense | None:
    """The first rule that serves an unquantized matmul, or None: TVM's own schedules do it then."""
    for rule in dense_rules_for(target):
        answer = rule.applies(spec, target)
        if isinstance(answer, Match):
            return ChosenDense(rule, answer)
    return None


class Choice(NamedTuple):
    """The configuration that a kernel is built with.

    Attributes:
        config: of the rule.
        source: "tuned" (for this very shape), "nearest" (for another one, at least in part), or "default".
        reason: in words, the rule's name first.
    """

    config: Any
    source: Literal["tuned", "nearest", "default"]
    reason: str


class Chooser(Protocol):
    """Who picks configurations: `compile` asks one that knows tuned records."""

    def choose(self, rule: Rule, spec: Spec, target: Target, default: Any) -> Choice:
        """The configuration for a kernel that the rule serves.

        Args:
            rule: the family.
            spec: the linear, or the attention kernel.
            target: what it runs on.
            default: the family's own choice.
        """


class Defaults:
    """A chooser that leaves it to the families."""

    def choose(self, rule: Rule, spec: Spec, target: Target, default: Any) -> Choice:
        """See ``Chooser.choose``."""
        return Choice(default, "default", rule.name)
