"""Replace the plain bodies of the fused functions by the target's kernels."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import tvm
from tvm import relax, tirx

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.rule import Chooser, Defaults, Unserved, attention_rule_for, select, select_dense
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target


@dataclass(frozen=True)
class KernelCoverage:
    """Which schedule serves a kernel, for ``compile --explain`` and the bundle's manifest.

    Args:
        name: shape, bits, group size and epilogue in words.
        count: call sites.
        source: "tuned" or "nearest" (a record of this shape or, in part, of another), "default" (a rule's own
            configuration) or "fallback" (no rule applies).
        reason: the rule's name and what it was told, or why none applies.
    """

    name: str
    count: int
    source: str
    reason: str


@tvm.transform.module_pass(opt_level=0, name="AttachSchedules")
class AttachSchedules:
    """Ask the target's rules for a kernel for every fused matmul.

    Before::

        def dequantize_matmul(...): ...      # three plain blocks

    After::

        def dequantize_matmul(...): ...      # tirx.is_scheduled, awq.schedule = "x86.float"

    The module's ``ir_attrs.COVERAGE`` lists what served each kernel.

    Attention kernels, which come scheduled, are built anew where the chooser knows something better.

    Needs: RepackWeights. Leaves alone: functions that no rule serves, for the generic schedules to do.
    """

    def __init__(self, target: Target, chooser: Chooser | None = None) -> None:
        """Take the target whose rules are asked, and who picks their configurations: the rules, by default."""
        self.target, self.chooser = target, chooser or Defaults()

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Replace PrimFuncs; call sites stay as they are."""
        calls = call_counts(mod)
        coverage = []
        updated = mod.clone()
        for variable, func in mod.functions_items():
            op = func.attrs.get(ir_attrs.OP) if func.attrs is not None else None
            if op == ir_attrs.OP_ATTENTION:
                updated[variable], kernel = self._attention(func)
                coverage.append(kernel)
                continue
            if op == ir_attrs.OP_DENSE_MATMUL:
                built, kernel = self._dense(func)
            elif op == ir_attrs.OP_DEQUANTIZE_MATMUL:
                built, kernel = self._quantized(func)
            else:
                continue
            coverage.append(replace(kernel, count=calls[variable.name_hint]))
            if built is not None:
                # Rules may name what they build, but a module holds many kernels of one rule.
                updated[variable] = built.without_attr("global_symbol")
        return updated.with_attr(ir_attrs.COVERAGE, json.dumps([asdict(kernel) for kernel in coverage]))

    def _quantized(self, func: tirx.PrimFunc) -> tuple[tirx.PrimFunc | None, KernelCoverage]:
        """The kernel of a quantized linear, if a rule serves it."""
        spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
        chosen = select(spec, self.target)
        if isinstance(chosen, Unserved):
            reason = "; ".join(chosen.reasons) or f"no rule for {self.target.family} targets"
            return None, KernelCoverage(_title(spec), 0, "fallback", reason)
        choice = self.chooser.choose(chosen.rule, spec, self.target, chosen.match.config)
        built = chosen.rule.build(spec, self.target, choice.config)
        return built, KernelCoverage(_title(spec), 0, choice.source, choice.reason)

    def _dense(self, func: tirx.PrimFunc) -> tuple[tirx.PrimFunc | None, KernelCoverage]:
        """The kernel of an unquantized matmul, if its weight is in the layout of a rule that serves it."""
        spec = DenseSpec.from_json(func.attrs[ir_attrs.DENSE_SPEC])
        title = f"{spec.out_features}x{spec.in_features} {spec.weight_dtype}"
        chosen = select_dense(spec, self.target)
        if chosen is None or func.attrs.get(ir_attrs.LAYOUT) != chosen.rule.layout(spec, self.target).name:
            return None, KernelCoverage(title, 0, "fallback", "TVM's own schedule of an unquantized matmul")
        choice = self.chooser.choose(chosen.rule, spec, self.target, chosen.match.config)
        built = chosen.rule.build(spec, self.target, choice.config)
        return built, KernelCoverage(title, 0, choice.source, choice.reason)

    def _attention(self, func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, KernelCoverage]:
        """The kernel itself, where nothing better is known, or one of the configuration that is."""
        spec, layers = (
            AttentionSpec.from_json(func.attrs[ir_attrs.ATTENTION_SPEC]),
            int(func.attrs[ir_attrs.LAYERS]),
        )
        rule = attention_rule_for(self.target)
        if rule is None:
            return func, KernelCoverage(spec.title, layers, "fallback", "its own schedule")
        default = rule.applies(spec, self.target).config
        choice = self.chooser.choose(rule, spec, self.target, default)
        if choice.config != default:
            func = rule.build(spec, self.target, choice.config).with_attrs(dict(func.attrs))
        return func, KernelCoverage(spec.title, layers, choice.source, choice.reason)


def call_counts(mod: tvm.IRModule) -> Counter[str]:
    """How often ``forward`` calls each function."""
    bindings = Bindings(mod, mod["forward"])
    calls = (bindings.call(value, "relax.call_tir") for _, value in bindings)
    return Counter(call.args[0].name_hint for call in calls if isinstance(call, relax.Call))


def _title(spec: MatmulSpec) -> str:
    extras = [spec.activation_function] if spec.activation_function else []
    extras += ["bias"] if spec.has_bias else []
    extras += ["residual"] if spec.has_residual else []
    extras += ["norm"] if spec.rms_norm_eps is not None else []
    extras += [f"{spec.gate} gate"] if spec.gate is not None else []
    extras += [f"{spec.output_gate} gated outputs"] if spec.output_gate is not None else []
    shape = f"{spec.out_features}x{spec.in_features} w{spec.bits} g{spec.group_size} {spec.activations}"
    return " ".join([shape, *("+" + extra for extra in extras)])
