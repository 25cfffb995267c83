"""Give every unquantized weight the layout that the target's matmul reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import DenseLayout
from awq_tvm.schedules.parameter_plan import ParameterPlan
from awq_tvm.schedules.reference import dense_matmul, dense_take
from awq_tvm.schedules.rule import select_dense
from awq_tvm.schedules.spec import DenseSpec
from awq_tvm.targets import Target


@tvm.transform.module_pass(opt_level=0, name="RepackDenseWeights")
class RepackDenseWeights:
    """Change unquantized weights, and everything that reads them, from [N, K] to the target's layout.

    Before::

        x = take(w, indices, axis=0)
        y = call_tir(dense_matmul, (x, w))

    After, with w in layout "dense16" and stored once though both read it::

        x = call_tir(dense_take, (w, indices))
        y = call_tir(dense_matmul, (x, w))

    Needs: FoldTransposeMatmul. Does not repack: a weight that no rule of the target serves, or that anything but
    matmuls and lookups along axis 0 reads.
    """

    def __init__(self, target: Target) -> None:
        """Take the target whose rules choose the layouts."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
        replacements: dict[relax.Var, Replacement] = {}
        new_parameters: dict[relax.Var, Any] = {}
        for weight in bindings.func.params:
            if weight.name not in plan.sources or plan.is_quantized(weight.name) or weight.ty.ndim != 2:
                continue
            users = bindings.users(weight)
            spec = next((s for _, value in users if (s := _matmul_spec(bindings, value)) is not None), None)
            chosen = select_dense(spec, self.target) if spec is not None else None
            if spec is None or chosen is None or not all(_can_read_any_layout(bindings, v) for _, v in users):
                continue
            layout = chosen.rule.layout(spec, self.target)
            (array,) = layout.arrays(spec.in_features, spec.out_features, spec.weight_dtype)
            stem = "+".join(tensor.removesuffix(".weight") for tensor in plan.dense(weight.name).tensors)
            packed = relax.Var(
                f"{stem}.{layout.name}.{array.suffix}", relax.TensorType(array.shape, array.dtype)
            )
            new_parameters[packed] = replace(plan.dense(weight.name), layout=layout.name)
            for var, value in users:
                replacements[var] = _read(bindings, value, packed, layout, spec)
        return rewrite(mod, "forward", replacements, new_parameters)


def _matmul_spec(bindings: Bindings, value: relax.Expr) -> DenseSpec | None:
    found = bindings.prim_func(value, ir_attrs.OP_DENSE_MATMUL)
    return None if found is None else DenseSpec.from_json(found[1].attrs[ir_attrs.DENSE_SPEC])


def _can_read_any_layout(bindings: Bindings, value: relax.Expr) -> bool:
    take = bindings.call(value, "relax.take")
    if take is not None:
        indices = take.args[1].ty
        return int(take.attrs.axis) == 0 and indices.ndim == 1 and str(indices.dtype) == "int32"
    return bindings.prim_func(value, ir_attrs.OP_DENSE_MATMUL) is not None


def _read(
    bindings: Bindings, value: relax.Call, packed: relax.Var, layout: DenseLayout, spec: DenseSpec
) -> Replacement:
    """The same call on the packed weight."""
    take = bindings.call(value, "relax.take")

    def replacement(rewriter: Rewriter) -> relax.Expr:
        if take is not None:
            rows = replace(spec, dtype=spec.weight_dtype)
            func = rewriter.add_func(dense_take(rows, layout), "dense_take")
            return relax.call_tir(func, [packed, take.args[1]], take.ty)
        func = rewriter.add_func(dense_matmul(spec, layout), "dense_matmul")
        return relax.call_tir(func, [value.args[1][0], packed], value.ty)

    return replacement
