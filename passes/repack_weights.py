"""Give every quantized weight the layout that the target's kernels read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import Layout
from awq_tvm.schedules.parameter_plan import ParameterPlan, QuantizedSource
from awq_tvm.schedules.reference import dequantize_matmul, dequantize_take
from awq_tvm.schedules.rule import Unserved, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

_REFERENCES = {
    ir_attrs.OP_DEQUANTIZE_MATMUL: dequantize_matmul,
    ir_attrs.OP_DEQUANTIZE_TAKE: dequantize_take,
}


@tvm.transform.module_pass(opt_level=0, name="RepackWeights")
class RepackWeights:
    """Change weight parameters, and all functions that read them, from the row layout to the target's.

    Before::

        y = call_tir(dequantize_matmul, (x, qweight, scales, zeros))     # layout "row"

    After, with new parameters of other shapes, which the parameter plan describes::

        y = call_tir(dequantize_matmul, (x, qweight, scales, zeros))     # layout "paired_blocks"

    The weights themselves are packed when the plan is carried out, at compile time. A weight that several
    functions read (a tied embedding) is stored once, in the layout of its matmul.

    Needs: FuseDequantizeMatmul, FuseDequantizeTake. Does not repack: a weight that no rule of the target serves.
    """

    def __init__(self, target: Target) -> None:
        """Take the target whose rules choose the layouts."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
        repacked: dict[relax.Var, _Repacked] = {}
        new_parameters: dict[relax.Var, Any] = {}
        for _, value in bindings:
            found = bindings.prim_func(value, ir_attrs.OP_DEQUANTIZE_MATMUL)
            if found is None:
                continue
            weights = _weights(found[0], plan)
            layout = self._layout(MatmulSpec.from_json(found[1].attrs[ir_attrs.MATMUL_SPEC]))
            if layout is None or not weights or weights[0] in repacked:
                continue
            repacked[weights[0]] = _Repacked(weights, layout, plan)
            new_parameters.update(repacked[weights[0]].parameters)
        replacements: dict[relax.Var, Replacement] = {}
        for var, value in bindings:
            for op in _REFERENCES:
                found = bindings.prim_func(value, op)
                weights = _weights(found[0], plan) if found is not None else ()
                if weights and weights[0] in repacked:
                    replacements[var] = repacked[weights[0]].replacement(found, op)
        return rewrite(mod, "forward", replacements, new_parameters)

    def _layout(self, spec: MatmulSpec) -> Layout | None:
        chosen = select(spec, self.target)
        return None if isinstance(chosen, Unserved) else chosen.rule.layout(spec, self.target)


def _weights(call: relax.Call, plan: ParameterPlan) -> tuple[relax.Var, ...]:
    """The arguments of a call_tir that are arrays of a quantized weight."""
    arguments = (a for a in call.args[1] if isinstance(a, relax.Var))
    return tuple(a for a in arguments if plan.is_quantized(a.name))


class _Repacked:
    """A weight in its new layout."""

    def __init__(self, weights: tuple[relax.Var, ...], layout: Layout, plan: ParameterPlan) -> None:
        self.layout = layout
        source = plan.quantized(weights[0].name)
        self.parameters: dict[relax.Var, QuantizedSource] = {}
        arrays = layout.arrays(MatmulSpec.from_json(source.spec))
        stem = "+".join(source.modules)
        for i, array in enumerate(arrays):
            name = f"{stem}.{layout.name}.{array.suffix}"
            var = relax.Var(name, relax.TensorType(array.shape, array.dtype))
            self.parameters[var] = replace(source, layout=layout.name, array=i)
        self.old = weights

    def replacement(self, found: Any, op: str) -> Replacement:
        call, func = found
        spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
        arguments: list[relax.Expr] = []
        for argument in call.args[1]:
            if argument in self.old:
                # The arrays stand together: the first old one makes way for all new ones.
                arguments += self.parameters if argument.same_as(self.old[0]) else []
            else:
                arguments.append(argument)

        def make(rewriter: Rewriter) -> relax.Expr:
            name = rewriter.add_func(_REFERENCES[op](spec, self.layout), op)
            return relax.call_tir(name, arguments, call.ty)

        return make
