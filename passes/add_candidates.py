"""Give a model for a GPU a function that finds what sampling needs of its logits."""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm import relax, tirx

from awq_tvm import ir_attrs
from awq_tvm.schedules.attention.gpu.lanes import WARP
from awq_tvm.schedules.gpu.candidates import CANDIDATES, RECORD, Division, find_candidates
from awq_tvm.targets import Target

NAME = "candidates"


@tvm.transform.module_pass(opt_level=0, name="AddCandidates")
class AddCandidates:
    """Add ``candidates``: the likeliest tokens of rows of logits, and the sums that make chances of them.

    Before::

        def forward(...): ...      # float32 [m, V]

    After, besides ``forward`` as it was::

        def candidates(logits[m, V], inverse_temperatures[m]):
            parts, found = call_tir(candidates_kernels, (logits, inverse_temperatures))
            return found           # float32 [m, RECORD], see ``schedules.gpu.candidates``

    Needs: nothing. Leaves alone: vocabularies that are no larger than what would be found.
    """

    def __init__(self, target: Target) -> None:
        """Take the GPU that the kernels are for."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Add the function."""
        if "forward" not in [variable.name_hint for variable in mod.get_global_vars()]:
            return mod
        vocabulary = int(mod["forward"].ret_ty.fields[0].shape[1])
        if vocabulary <= CANDIDATES or self.target.warp_size != WARP:
            return mod
        kernel = find_candidates(vocabulary, tvm.target.Target(self.target.tvm_target_with_host))
        rows = tirx.Var("m", "int64")
        logits = relax.Var("logits", relax.TensorType((rows, vocabulary), "float32"))
        temperatures = relax.Var("inverse_temperatures", relax.TensorType((rows,), "float32"))
        outputs = [
            relax.TensorType((rows, Division(vocabulary).parts, RECORD), "uint32"),
            relax.TensorType((rows, RECORD), "float32"),
        ]
        builder = relax.BlockBuilder()
        function = builder.add_func(kernel.without_attr("global_symbol"), f"{NAME}_kernels")
        with builder.function(NAME, [logits, temperatures]):
            with builder.dataflow():
                both = builder.emit(relax.call_tir(function, [logits, temperatures], outputs))
                found = builder.emit_output(relax.TupleGetItem(both, 1))
            builder.emit_func_output(found)
        added = builder.get()
        updated = mod.clone()
        updated[function] = added[function]
        # As many rows as sequences can be: what blocks leave each other is planned for so many.
        bound = {"m": int(json.loads(mod.attrs[ir_attrs.METADATA])["max_sequences"])}
        updated[NAME] = added[NAME].with_attr("tir_var_upper_bound", bound)
        return updated
