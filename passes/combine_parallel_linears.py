"""Make one matmul of the quantized linears that read the same input: q, k and v; gate and up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter, rewrite
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, ParameterPlan, QuantizedSource
from awq_tvm.schedules.reference import dequantize
from awq_tvm.schedules.spec import MatmulSpec


@tvm.transform.module_pass(opt_level=0, name="CombineParallelLinears")
class CombineParallelLinears:
    """Stack the weights of quantized linears over one input, so that the input is read and prepared once.

    Before::

        q = matmul(x, permute_dims(dequantize(wq))) + bq
        k = matmul(x, permute_dims(dequantize(wk))) + bk

    After::

        qk = matmul(x, permute_dims(dequantize(wqk))) + bqk
        q, k = qk[:, :Nq], qk[:, Nq:]

    A concat of all the slices in order becomes the combined result itself. The stacked weights are new
    parameters; the parameter plan says what they are made of.

    Needs: nothing. Does not combine: linears of different bits or group size, a biased with an unbiased one,
    unquantized linears.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite ``forward``."""
        bindings = Bindings(mod, mod["forward"])
        plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
        replacements: dict[relax.Var, Replacement] = {}
        new_parameters: dict[relax.Var, Any] = {}
        for group in _groups(bindings, plan):
            combined = _Combined(group, plan)
            new_parameters.update(combined.parameters)
            replacements.update(combined.replacements(bindings))
        return rewrite(mod, "forward", replacements, new_parameters)


@dataclass(frozen=True)
class _Linear:
    """One quantized linear in the function: its input, its weights' parameters, its last variable."""

    x: relax.Var
    weights: tuple[relax.Var, ...]
    spec: MatmulSpec
    bias: relax.Var | None
    result: relax.Var


def _groups(bindings: Bindings, plan: ParameterPlan) -> list[list[_Linear]]:
    by_input: dict[Any, list[_Linear]] = defaultdict(list)
    for var, _ in bindings:
        linear = _match(bindings, var, plan)
        if linear is not None:
            same = replace(linear.spec, out_features=0)
            by_input[(linear.x, same, linear.bias is None)].append(linear)
    return [group for group in by_input.values() if len(group) > 1]


def _match(bindings: Bindings, var: relax.Var, plan: ParameterPlan) -> _Linear | None:
    """The linear whose matmul is bound to var, with the bias that follows it if there is one."""
    matmul = bindings.call(var, "relax.matmul")
    transposed = bindings.call(matmul.args[1], "relax.permute_dims") if matmul is not None else None
    found = bindings.prim_func(transposed.args[0], ir_attrs.OP_DEQUANTIZE) if transposed is not None else None
    if matmul is None or found is None:
        return None
    call, func = found
    weights = tuple(call.args[1])
    if not all(plan.is_quantized(w.name) for w in weights):
        return None
    spec = MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC])
    for user, value in bindings.users(var):
        if (
            bindings.call(value, "relax.add") is not None
            and value.args[0].same_as(var)
            and bindings.uses[var] == 1
        ):
            bias = value.args[1]
            if bindings.is_parameter(bias) and plan.is_dense(bias.name):
                return _Linear(matmul.args[0], weights, spec, bias, user)
    return _Linear(matmul.args[0], weights, spec, None, var)


class _Combined:
    """The linear that replaces a group."""

    def __init__(self, group: list[_Linear], plan: ParameterPlan) -> None:
        self.group = group
        self.spec = replace(group[0].spec, out_features=sum(linear.spec.out_features for linear in group))
        self.layout = LAYOUTS["row"]
        self.parameters: dict[relax.Var, Any] = {}
        self.weights = []
        for i, array in enumerate(self.layout.arrays(self.spec)):
            modules = tuple(m for linear in group for m in plan.quantized(linear.weights[i].name).modules)
            source = QuantizedSource(modules, self.spec.to_json(), self.layout.name, i)
            self.weights.append(self._parameter(f"{'+'.join(modules)}.{array.suffix}", array, source))
        self.bias: relax.Var | None = None
        biases = [linear.bias for linear in group if linear.bias is not None]
        if biases:
            tensors = tuple(t for bias in biases for t in plan.dense(bias.name).tensors)
            ty = relax.TensorType((self.spec.out_features,), self.spec.dtype)
            self.bias = relax.Var("+".join(tensors), ty)
            self.parameters[self.bias] = DenseSource(tensors, self.spec.dtype)

    def _parameter(self, name: str, array: Any, source: QuantizedSource) -> relax.Var:
        var = relax.Var(name, relax.TensorType(array.shape, array.dtype))
        self.parameters[var] = source
        return var

    def replacements(self, bindings: Bindings) -> dict[relax.Var, Replacement]:
        """New values for the results of the group's linears and for a concat of all of them."""
        emitted: list[relax.Var] = []

        def whole(rewriter: Rewriter) -> relax.Var:
            if not emitted:
                emitted.append(rewriter.emit(self._expression(rewriter)))
            return emitted[0]

        result: dict[relax.Var, Replacement] = {}
        begin = 0
        for linear in self.group:
            end = begin + linear.spec.out_features
            result[linear.result] = _slice(whole, begin, end)
            begin = end
        names = [linear.result for linear in self.group]
        for user, value in bindings.users(names[0]):
            concat = bindings.call(value, "relax.concat")
            if concat is not None and int(concat.attrs.axis) == 1 and list(concat.args[0]) == names:
                result[user] = whole
        return result

    def _expression(self, rewriter: Rewriter) -> relax.Expr:
        func = rewriter.add_func(dequantize(self.spec, self.layout), "dequantize")
        ty = relax.TensorType((self.spec.out_features, self.spec.in_features), self.spec.dtype)
        weight = relax.op.permute_dims(relax.call_tir(func, self.weights, ty), [1, 0])
        y = relax.op.matmul(self.group[0].x, weight)
        return y if self.bias is None else relax.op.add(y, self.bias)


def _slice(whole: Replacement, begin: int, end: int) -> Replacement:
    """Columns [begin, end) of the combined result."""
    return lambda rewriter: relax.op.strided_slice(whole(rewriter), axes=[1], begin=[begin], end=[end])
