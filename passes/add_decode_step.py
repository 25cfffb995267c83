"""Give the model a second entry for one new token of one sequence, all of whose shapes are known."""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.rewrite import Bindings, Replacement, Rewriter

DECODE = "decode"
WORKSPACE = "decode_workspace"


@tvm.transform.module_pass(opt_level=0, name="AddDecodeStep")
class AddDecodeStep:
    """Add ``decode``: ``forward`` with n = m = 1, which calls the same matmuls on the same weights.

    Before::

        def forward(input_ids[n], logit_positions[m], kv_cache, w0, ...):
            x = call_tir(dequantize_matmul, (x, w0), [n, 64])
            ...
            y = take(x, logit_positions)
            return logits, kv_cache

    After, besides ``forward`` as it was::

        def decode(input_ids[1], kv_cache, w0, ...):      # awq.workspace = "decode_workspace"
            x = call_tir(dequantize_matmul, (x, w0), [1, 64])
            ...
            return logits

    A matmul's PrimFunc looks at M when it is called and so serves both. What TVM fuses of the rest is small, and is
    made for each: this pass stands before that. ``LiftWorkspace`` takes the allocations out when the module is built.

    Needs: AttachSchedules, the last pass that changes weights. Leaves alone: modules without ``forward``.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Add the function."""
        if "forward" not in [variable.name_hint for variable in mod.get_global_vars()]:
            return mod
        one_token = {"n": 1, "m": 1}
        step = relax.utils.copy_with_new_vars(mod["forward"]).bind_symbolic_vars(one_token)
        inputs = step.params[: int(step.attrs["num_input"])]
        _, positions, _ = inputs
        bindings = Bindings(mod, step)
        replacements: dict[relax.Var, Replacement] = {
            # Of one token that token is taken.
            var: partial(_argument, value.args[0])
            for var, value in bindings
            if bindings.call(value, "relax.take") is not None and value.args[1].same_as(positions)
        }
        body = _first_of_pair(Rewriter(mod, replacements).visit_expr(step).body)
        params = [p for p in step.params if not p.same_as(positions)]
        attrs = {
            "global_symbol": DECODE,
            ir_attrs.WORKSPACE: WORKSPACE,
            ir_attrs.INPUTS: len(inputs) - 1,
        }
        updated = mod.clone()
        updated[DECODE] = relax.Function(params, body, body.body.ty, step.is_pure).with_attrs(attrs)
        return updated


def _first_of_pair(body: relax.SeqExpr) -> relax.SeqExpr:
    """The same bindings, of whose last one, a pair, only the first part is returned."""
    *blocks, last = body.blocks
    *bindings, pair = last.bindings
    first = pair.value[0]
    result = relax.Var("logits", first.ty)
    return relax.SeqExpr([*blocks, relax.DataflowBlock([*bindings, relax.VarBinding(result, first)])], result)


def _argument(value: relax.Expr, _rewriter: Rewriter) -> relax.Expr:
    return value
