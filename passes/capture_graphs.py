"""Launch the kernels between a decode step's calls of the KV cache as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import count, groupby
from typing import Any

import tvm
from tvm import relax, tirx

from awq_tvm import ir_attrs

SUFFIX = "_in_graphs"
LEAST_CALLS = 2
"""Of a graph: launching one of a single kernel costs what launching the kernel does."""

_RUN_OR_CAPTURE = "vm.builtin.cuda_graph.run_or_capture"


@tvm.transform.module_pass(opt_level=0, name="CaptureGraphs")
class CaptureGraphs:
    """Add, for a function that computes in its parameters alone, one that captures its runs of kernels.

    Before::

        def decode(x, cache, w, y, z):                   # awq.computes_in_parameters
            kernel(x, w, y)
            attention(cache, y, z)
            kernel_1(z, w, x)
            kernel_2(x, y)

    After, besides ``decode`` as it was::

        def decode_graph0(z, w, x, y):
            kernel_1(z, w, x)
            kernel_2(x, y)
            return ()

        def decode_in_graphs(x, cache, w, y, z):
            kernel(x, w, y)
            attention(cache, y, z)
            cuda_graph.run_or_capture(decode_graph0, (z, w, x, y), 0)

    The runtime runs such a function on the first call, captures it, and launches the same graph from then on: with
    the pointers of the capture, whatever it is given later. So a caller has to give the same tensors each time. Calls
    of the KV cache do work on the host and launch with other arguments for each token; they stay between the graphs.

    Needs: LiftWorkspace. Leaves alone: functions without the attribute.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Add the functions."""
        builder = relax.BlockBuilder(mod.clone())
        kernels = {v.name_hint for v, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)}
        # The runtime tells the graphs of a machine apart by their numbers, whatever function they are of.
        numbers = count()
        for variable, func in mod.functions_items():
            if isinstance(func, relax.Function) and ir_attrs.COMPUTES_IN_PARAMETERS in (func.attrs or {}):
                name = variable.name_hint
                builder.add_func(
                    _Capturing(builder, kernels, name, numbers).function(func), f"{name}{SUFFIX}"
                )
        return builder.finalize()


class _Capturing:
    """Makes the function that captures.

    Args:
        builder: takes the functions that are captured.
        kernels: names of the module's PrimFuncs.
        name: of the function.
        numbers: of the graphs.
    """

    def __init__(
        self, builder: relax.BlockBuilder, kernels: Set[str], name: str, numbers: Iterator[int]
    ) -> None:
        self._builder, self._kernels, self._name, self._numbers = builder, kernels, name, numbers

    def function(self, func: relax.Function) -> relax.Function:
        """The same calls, runs of kernels in graphs."""
        func = relax.utils.copy_with_new_vars(func)
        parameters = set(func.params)
        bindings: list[relax.Binding] = []
        found = (binding for block in func.body.blocks for binding in block.bindings)
        for captured, run in groupby(found, lambda binding: self._can_be_captured(binding, parameters)):
            calls = list(run)
            bindings += [self._graph(calls)] if captured and len(calls) >= LEAST_CALLS else calls
        body = relax.SeqExpr([relax.BindingBlock(bindings)], func.body.body)
        copied = relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)
        return copied.with_attr("global_symbol", f"{self._name}{SUFFIX}")

    def _can_be_captured(self, binding: relax.Binding, parameters: set[relax.Var]) -> bool:
        """Whether it calls a kernel on nothing but parameters."""
        call = binding.value
        kernel = isinstance(call, relax.Call) and isinstance(call.op, relax.ExternFunc)
        return kernel and call.op.global_symbol in self._kernels and parameters.issuperset(call.args)

    def _graph(self, calls: Sequence[relax.Binding]) -> relax.Binding:
        """The binding that launches these calls, made a function of the module."""
        # Each once, in the order of their first use.
        given = list(dict.fromkeys(argument for binding in calls for argument in binding.value.args))
        taken = {argument: relax.Var(f"argument{i}", relax.AnyType()) for i, argument in enumerate(given)}
        bindings = [
            relax.VarBinding(
                relax.Var("_", binding.var.ty),
                relax.Call(
                    binding.value.op, [taken[a] for a in binding.value.args], ty_args=binding.value.ty_args
                ),
            )
            for binding in calls
        ]
        nothing = relax.Tuple([])
        body = relax.SeqExpr([relax.BindingBlock(bindings)], nothing)
        function = relax.Function(list(taken.values()), body, relax.TupleType([]), is_pure=False)
        number = next(self._numbers)
        name = f"{self._name}_graph{number}"
        captured = self._builder.add_func(function.with_attr("global_symbol", name), name)
        arguments = [captured, relax.Tuple(given), relax.prim_value(number)]
        # Of the type of nothing it would have no register for what the function returns.
        anything = relax.AnyType()
        launch = relax.op.call_builtin_with_ctx(_RUN_OR_CAPTURE, arguments, ty_args=anything)
        return relax.VarBinding(relax.Var("_", anything), launch)
