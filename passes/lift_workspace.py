"""Allocate what a function of fixed shapes computes in once, not on every call."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from awq_tvm import ir_attrs


@tvm.transform.module_pass(opt_level=0, name="LiftWorkspace")
class LiftWorkspace:
    """Make parameters of the tensors that a function allocates, and a second function that allocates them.

    Before::

        def decode(x, w):                               # awq.workspace = "decode_workspace"
            storage = memory.alloc_storage([256], ...)
            y = memory.alloc_tensor(storage, 0, [1, 64], "float32")
            kernel(x, w, y)
            z = reshape(y, [8, 8])
            ...

    After::

        def decode(x, w, y, z):                         # awq.computes_in_parameters
            kernel(x, w, y)
            ...

        def decode_workspace():
            storage = memory.alloc_storage([256], ...)
            y = memory.alloc_tensor(storage, 0, [1, 64], "float32")
            z = memory.alloc_tensor(storage, 0, [8, 8], "float32")
            return y, z

    What is returned lies in the workspace too, until the next call. The parameters lose their types: the virtual
    machine would check each on every call, and every kernel checks its own.

    Needs: StaticPlanBlockMemory, so that storage is shared. Leaves alone: functions without the attribute, or with
    a dimension that is not known.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Rewrite every function that asks for it."""
        updated = mod.clone()
        for variable, func in mod.functions_items():
            if isinstance(func, relax.Function) and _asks(func):
                name = str(func.attrs[ir_attrs.WORKSPACE])
                lifting = _Lifting(mod)
                updated[variable] = lifting.lifted(func.without_attr(ir_attrs.WORKSPACE))
                updated[name] = lifting.workspace.function(name)
        return updated


@dataclass(frozen=True)
class _Place:
    """A tensor of the workspace: where it lies and what it is read as."""

    storage: relax.Var
    offset: int
    shape: tuple[int, ...]
    dtype: str


class _Workspace:
    """What the second function is to allocate.

    Attributes:
        storages: the calls that allocate memory, by the variables they were bound to.
        tensors: the parameters that stand for tensors in it.
    """

    def __init__(self) -> None:
        self.storages: dict[relax.Var, relax.Call] = {}
        self.tensors: dict[_Place, relax.Var] = {}

    def parameter(self, place: _Place) -> relax.Var:
        """The parameter for a tensor; two of the same place, shape and dtype are one."""
        if place not in self.tensors:
            self.tensors[place] = relax.Var(f"workspace{len(self.tensors)}", relax.AnyType())
        return self.tensors[place]

    def function(self, name: str) -> relax.Function:
        """The function that makes the tensors, in the order of their parameters."""
        builder = relax.BlockBuilder()
        with builder.function(name, []):
            used = dict.fromkeys(place.storage for place in self.tensors)
            memory = {storage: builder.emit(self.storages[storage]) for storage in used}
            made = []
            for place in self.tensors:
                shape = relax.ShapeExpr(place.shape)
                arguments = (memory[place.storage], place.offset, shape, place.dtype)
                made.append(builder.emit(relax.op.memory.alloc_tensor(*arguments)))
            builder.emit_func_output(relax.Tuple(made))
        return builder.get()[name].with_attr("relax.force_pure", True)


@mutator
class _Lifting(PyExprMutator):
    """Puts parameters in place of the tensors that a function allocates."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.workspace = _Workspace()
        self._places: dict[relax.Var, _Place] = {}
        self._replaced: dict[relax.Var, relax.Var] = {}

    def lifted(self, func: relax.Function) -> relax.Function:
        """The function, with the workspace behind its own parameters."""
        for number, parameter in enumerate(func.params):
            # Names of hundreds of weights would be a sixth of a library's size.
            self._replaced[parameter] = relax.Var(f"argument{number}", relax.AnyType())
        body = self.visit_expr(func.body)
        params = [*(self._replaced[p] for p in func.params), *self.workspace.tensors.values()]
        lifted = relax.Function(params, body, relax.AnyType(), func.is_pure, func.attrs)
        return lifted.with_attr(ir_attrs.COMPUTES_IN_PARAMETERS, True)

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        """Called by TVM for every use of a variable."""
        return self._replaced[var] if var in self._replaced else super().visit_var_(var)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Called by TVM for every binding."""
        var, value = binding.var, binding.value
        if isinstance(value, relax.Var) and value in self._replaced:
            self._replaced[var] = self._replaced[value]
            if value in self._places:
                self._places[var] = self._places[value]
            return
        operator = value.op.name if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""
        if operator == "relax.memory.alloc_storage":
            self.workspace.storages[var] = value
            return
        place = self._place(var, value, operator)
        if place is None:
            if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
                # By its name: a kernel's own type would ask for those that the parameters have lost.
                name = relax.ExternFunc(value.op.name_hint)
                call = relax.Call(name, value.args, ty_args=[relax.AnyType()])
                binding = relax.VarBinding(var, call)
            super().visit_var_binding_(binding)
            return
        self._places[var], self._replaced[var] = place, self.workspace.parameter(place)

    def _place(self, var: relax.Var, value: Any, operator: str) -> _Place | None:
        """Where the tensor lies that a call makes, if it is one for the workspace."""
        if operator == "relax.memory.alloc_tensor":
            storage, offset, shape, dtype = value.args[:4]
            return _Place(storage, int(offset.value), _extents(shape), dtype.value)
        if operator == "relax.builtin.alloc_tensor":
            # What is returned: TVM's plan leaves it out, so it gets storage of its own.
            shape, dtype, device, scope = value.args
            size = math.prod(_extents(shape)) * tvm.DataType(dtype.value).itemsize
            self.workspace.storages[var] = relax.op.memory.alloc_storage(
                relax.ShapeExpr([size]), device, scope, dtype
            )
            return _Place(var, 0, _extents(shape), dtype.value)
        if operator == "relax.reshape" and value.args[0] in self._places:
            return replace(self._places[value.args[0]], shape=_extents(value.args[1]))
        return None


def _asks(func: relax.Function) -> bool:
    """Whether a function asks for a workspace and all its shapes are known."""
    known = not relax.analysis.defined_symbolic_vars(func)
    return known and func.attrs is not None and ir_attrs.WORKSPACE in func.attrs


def _extents(shape: relax.ShapeExpr) -> tuple[int, ...]:
    return tuple(int(extent) for extent in shape.values)
