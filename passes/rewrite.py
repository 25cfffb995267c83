"""Reading and rewriting the bindings of a Relax function, shared by the passes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from awq_tvm import ir_attrs
from awq_tvm.schedules.parameter_plan import ParameterPlan

Replacement = Callable[["Rewriter"], relax.Expr]
"""Makes the new value of a binding, in terms of the function's old variables or of what it emits itself."""


class Bindings:
    """What every variable of a function is bound to, and how often it is used."""

    def __init__(self, mod: tvm.IRModule, func: relax.Function) -> None:
        """Walk the function once."""
        self.mod, self.func = mod, func
        self.values: dict[relax.Var, relax.Expr] = {}
        self.uses: Counter[relax.Var] = Counter()
        self._users: dict[relax.Var, list[tuple[relax.Var, relax.Expr]]] = defaultdict(list)
        for block in func.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = binding.value
                for var in _variables(binding.value):
                    self.uses[var] += 1
                    self._users[var].append((binding.var, binding.value))
        self.uses.update(_variables(func.body.body))

    def __iter__(self) -> Iterator[tuple[relax.Var, relax.Expr]]:
        """Variables and their values in program order."""
        return iter(self.values.items())

    def call(self, expr: relax.Expr, operator: str) -> relax.Call | None:
        """The call of ``operator`` (such as "relax.add") that expr is or is bound to, else None."""
        value = self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) and value.op.name == operator:
            return value
        return None

    def prim_func(self, expr: relax.Expr, op: str) -> tuple[relax.Call, tirx.PrimFunc] | None:
        """The call_tir that expr is or is bound to and its callee, where the callee's ``ir_attrs.OP`` is op."""
        call = self.call(expr, "relax.call_tir")
        if call is None:
            return None
        func = self.mod[call.args[0]]
        return (call, func) if func.attrs.get(ir_attrs.OP) == op else None

    def users(self, var: relax.Var) -> list[tuple[relax.Var, relax.Expr]]:
        """The bindings, as (variable, value), whose value uses var; one entry for each use."""
        return self._users[var]

    def is_parameter(self, expr: relax.Expr) -> bool:
        """Whether expr is one of the function's parameters."""
        return any(expr.same_as(p) for p in self.func.params)

    def is_weight(self, expr: relax.Expr) -> bool:
        """Whether expr is a parameter of the model, and no input of the function."""
        attrs = self.func.attrs or {}
        inputs = attrs.get("num_input", attrs.get(ir_attrs.INPUTS))
        return inputs is not None and any(expr.same_as(p) for p in self.func.params[int(inputs) :])


def _variables(expr: relax.Expr) -> list[relax.Var]:
    """The variables in expr, one entry for each use."""
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(expr, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found


@mutator
class Rewriter(PyExprMutator):
    """Replaces the values of some bindings and leaves the rest alone."""

    def __init__(self, mod: tvm.IRModule, replacements: Mapping[relax.Var, Replacement]) -> None:
        """Take replacements by the variable that is bound."""
        super().__init__(mod)
        self.replacements = replacements

    def add_func(self, func: tirx.PrimFunc, name: str) -> tvm.ir.GlobalVar:
        """Add a PrimFunc to the module, or find the equal one that is already there."""
        return self.builder_.add_func(func, name)

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Bind expr, given in old variables, to a new variable in front of the current binding."""
        return self.builder_.emit(self.visit_expr(expr))

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Called by TVM for every binding."""
        replacement = self.replacements.get(binding.var)
        if replacement is not None:
            binding = relax.VarBinding(binding.var, replacement(self))
        super().visit_var_binding_(binding)


def rewrite(
    mod: tvm.IRModule,
    name: str,
    replacements: Mapping[relax.Var, Replacement],
    new_parameters: Mapping[relax.Var, Any] | None = None,
) -> tvm.IRModule:
    """Apply replacements to one function, drop what became dead, and keep the parameter plan in step.

    Args:
        mod: the module.
        name: which of its functions.
        replacements: by bound variable.
        new_parameters: weight parameters that the replacements use, with their sources.
    """
    func = mod[name]
    new_parameters = new_parameters or {}
    rewriter = Rewriter(mod, replacements)
    body = rewriter.visit_expr(func)
    params = [*body.params, *new_parameters]
    func = relax.Function(params, body.body, body.ret_ty, body.is_pure, body.attrs)
    attrs = mod.attrs
    mod = rewriter.builder_.get()
    mod[name] = func
    if attrs:
        mod = mod.with_attrs(attrs)
    mod = relax.transform.DeadCodeElimination()(mod)
    return _drop_unused_weights(mod, name, {p.name: source for p, source in new_parameters.items()})


def _drop_unused_weights(mod: tvm.IRModule, name: str, added: Mapping[str, Any]) -> tvm.IRModule:
    func = mod[name]
    uses = Bindings(mod, func).uses
    inputs = int(func.attrs["num_input"])
    weights = [p for p in func.params[inputs:] if uses[p]]
    func = relax.Function([*func.params[:inputs], *weights], func.body, func.ret_ty, func.is_pure, func.attrs)
    sources = {**ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN]).sources, **added}
    plan = ParameterPlan({p.name: sources[p.name] for p in weights})
    mod = mod.clone()
    mod[name] = func
    return mod.with_attr(ir_attrs.PARAMETER_PLAN, plan.to_json())
