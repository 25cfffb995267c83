"""What the host part of a kernel's function launches, without running it: for tests, counts and other launchers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.sym import Analyzer

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.toolchain.overlap import marking
from awq_tvm.compile.toolchain.statements import inner_statements
from awq_tvm.errors import UnsupportedError
from awq_tvm.targets import Target

_DYNAMIC_SHARED, _CLUSTER = "tirx.use_dyn_shared_memory", "clusterCtaIdx.x"


class HostPart:
    """The host part of one scheduled PrimFunc, as TVM's passes leave it.

    Args:
        func: with kernels; symbolic extents by name.
        target: a GPU.

    Attributes:
        source: of the kernels.
        workspaces: bytes of each buffer that the host part allocates, by name.
    """

    def __init__(self, func: Any, target: Target) -> None:
        from tvm.tirx.build import codegen_build, split_host_device_mods

        with tvm.target.Target(target.tvm_target_with_host) as built_for:
            module = tirx.transform.BindTarget(built_for)(tvm.IRModule({func.attrs["global_symbol"]: func}))
            passes, _, finish_device = tirx.get_default_tir_pipeline(built_for)
            host, devices = split_host_device_mods(passes(module))
            ((_, device),) = devices.items()
            device = marking(finish_device())(device)
            self.source: str = codegen_build(device, built_for).inspect_source(target.kind)
        self._parameters = {
            str(variable.name_hint): [str(p.name) for p in kernel.params]
            for variable, kernel in device.functions.items()
        }
        self._overlapping = {
            variable.name_hint
            for variable, kernel in device.functions.items()
            if ir_attrs.OVERLAP_TAG in map(str, kernel.attrs["tirx.kernel_launch_params"])
        }
        (entry,) = host.functions.values()
        (self._scope,) = _scopes(entry.body)
        self.workspaces: dict[str, int] = dict(_workspaces(self._scope))

    def launches(self, values: Mapping[str, int | float]) -> tuple[Launch, ...]:
        """What is launched, in order.

        Args:
            values: of the symbolic extents and of parameters that are numbers.

        Raises:
            UnsupportedError: the host part holds a statement that is not known here.
        """
        return tuple(self._follow(self._scope.body, _Values(values)))

    def _follow(self, statement: Any, values: _Values) -> Iterator[Launch]:
        match statement:
            case tirx.SeqStmt():
                for one in statement.seq:
                    yield from self._follow(one, values)
            case tirx.IfThenElse():
                if values.of(statement.condition):
                    yield from self._follow(statement.then_case, values)
                elif statement.else_case is not None:
                    yield from self._follow(statement.else_case, values)
            case tirx.Bind():
                values.bind(statement.var, statement.value)
            case tirx.AllocBuffer() | tirx.DeclBuffer():
                pass
            case tirx.Evaluate() if isinstance(statement.value, tvm.ir.Call):
                yield self._launch(statement.value, values)
            case tirx.Evaluate():
                pass
            case _:
                raise UnsupportedError(
                    "The host part of a kernel is not understood",
                    why=f"it holds a {type(statement).__name__}",
                )

    def _launch(self, call: Any, values: _Values) -> Launch:
        name, *arguments = call.args
        parameters = self._parameters[str(name.value)]
        tags = [str(tag) for tag in call.attrs["launch_params"]]
        given = [
            parameter.removesuffix("_ptr") if parameter.endswith("_ptr") else values.number(argument)
            for parameter, argument in zip(parameters, arguments, strict=False)
        ]
        extents = dict(zip(tags, map(values.of, arguments[len(parameters) :]), strict=True))
        return Launch(
            str(name.value),
            tuple(given),
            _three(extents, "blockIdx"),
            _three(extents, "threadIdx"),
            extents.get(_DYNAMIC_SHARED, 0),
            str(name.value) in self._overlapping,
            extents.get(_CLUSTER, 1),
        )


def _three(extents: Mapping[str, int], kind: str) -> tuple[int, int, int]:
    return extents.get(f"{kind}.x", 1), extents.get(f"{kind}.y", 1), extents.get(f"{kind}.z", 1)


class _Values:
    """What the host part's variables are."""

    def __init__(self, values: Mapping[str, int | float]) -> None:
        self._by_name, self._analyzer = values, Analyzer()

    def bind(self, variable: Any, value: Any) -> None:
        """Give a variable the value of an expression."""
        known = tirx.const(self.number(value), variable.ty.dtype)
        self._analyzer.bind(variable, known, allow_override=True)

    def of(self, expression: Any) -> int:
        """The value of an integer expression."""
        return int(self.number(expression))

    def number(self, expression: Any) -> int | float:
        """The value of an expression."""
        for variable in tirx.analysis.undefined_vars(expression):
            if variable.name in self._by_name:
                value = tirx.const(self._by_name[variable.name], variable.ty.dtype)
                self._analyzer.bind(variable, value, allow_override=True)
        found = self._analyzer.simplify(expression)
        return float(found) if str(expression.ty.dtype).startswith("float") else int(found)


def _scopes(statement: Any) -> Iterator[Any]:
    """Where the work of a function begins, behind the checks of its arguments."""
    if isinstance(statement, tirx.AttrStmt) and statement.attr_key == "compute_scope":
        yield statement
        return
    for one in inner_statements(statement):
        yield from _scopes(one)


def _workspaces(statement: Any) -> Iterator[tuple[str, int]]:
    if isinstance(statement, tirx.AllocBuffer):
        buffer = statement.buffer
        (length,) = buffer.shape
        yield str(buffer.name), int(length) * tvm.DataType(buffer.dtype).itemsize
    for one in inner_statements(statement):
        yield from _workspaces(one)
