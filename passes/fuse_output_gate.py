"""Let the linear that makes gate and up of an MLP gate them itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.gates import find_gate
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.parameter_plan import ParameterPlan, QuantizedSource
from awq_tvm.schedules.reference import dequantize_matmul
from awq_tvm.schedules.rule import Unserved, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target


@tvm.transform.module_pass(opt_level=0, name="FuseOutputGate")
class FuseOutputGate:
    """Gate the sums of a quantized linear where they are made, where the target's kernels can.

    Before, with the rows of gate above those of up::

        gu = call_tir(dequantize_matmul, (x, qweight, scales, zeros))
        y = multiply(silu(gu[:, :K]), gu[:, K:])

    After, with a row of gate and a row of up in turn::

        y = call_tir(dequantize_matmul, (x, qweight, scales, zeros))

    Needs: CombineParallelLinears; FuseDequantizeMatmul; to stand before RepackWeights. Does not fuse: what others
    read too, linears with a bias, a weight that another call reads.
    """

    def __init__(self, target: Target) -> None:
        """Take the target whose rules are asked."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
        replacements: dict[relax.Var, Replacement] = {}
        new_parameters: dict[relax.Var, QuantizedSource] = {}
        for var, value in bindings:
            found = find_gate(bindings, value)
            gated = None if found is None else self._gated(bindings, plan, *found)
            if gated is None:
                continue
            spec, x, weights = gated
            new_parameters.update(weights)
            replacements[var] = _fused(spec, [x, *weights], var.ty)
        return rewrite(mod, "forward", replacements, new_parameters)

    def _gated(
        self, bindings: Bindings, plan: ParameterPlan, gate: str, sums: relax.Expr
    ) -> tuple[MatmulSpec, relax.Expr, dict[relax.Var, QuantizedSource]] | None:
        """The linear with its gate: its spec, x, and its weights in the new order of rows; None where it stays."""
        product = bindings.prim_func(sums, ir_attrs.OP_DEQUANTIZE_MATMUL)
        if product is None or bindings.uses[sums] != 2:
            return None
        if any(bindings.uses[half] != 1 for half, _ in bindings.users(sums)):
            return None
        (x, *weights), func = product[0].args[1], product[1]
        spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
        if spec.has_bias or spec.activation_function is not None or spec.has_residual:
            return None
        if not all(plan.is_quantized(w.name) and bindings.uses[w] == 1 for w in weights):
            return None
        spec = replace(spec, output_gate=gate)
        if isinstance(select(spec, self.target), Unserved):
            return None
        return spec, x, dict(_in_turn(weight, plan, spec) for weight in weights)


def _in_turn(weight: relax.Var, plan: ParameterPlan, spec: MatmulSpec) -> tuple[relax.Var, QuantizedSource]:
    """The parameter with its halves' rows in turn, of the same shape, and what it is made of."""
    source = replace(plan.quantized(weight.name), spec=spec.to_json(), halves_in_turn=True)
    return relax.Var(f"{weight.name}.in_turn", weight.ty), source


def _fused(spec: MatmulSpec, arguments: list[relax.Expr], ty: Any) -> Replacement:
    def replacement(rewriter: Rewriter) -> relax.Expr:
        name = rewriter.add_func(dequantize_matmul(spec, LAYOUTS["row"]), "dequantize_matmul")
        return relax.call_tir(name, arguments, ty)

    return replacement
