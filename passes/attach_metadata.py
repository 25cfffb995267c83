"""Let the library say what it is."""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm import relax

from awq_tvm import ir_attrs
from awq_tvm.passes.add_candidates import NAME as FINDS_CANDIDATES
from awq_tvm.passes.add_decode_step import DECODE
from awq_tvm.schedules.gpu.candidates import CANDIDATES
from awq_tvm.targets import Target


@tvm.transform.module_pass(opt_level=0, name="AttachMetadata")
class AttachMetadata:
    """Add a function that returns facts about the module as JSON text.

    Before::

        def forward(...): ...

    After::

        def forward(...): ...
        def metadata(): return '{"max_logit_rows": 128, ...}'

    The facts are those under ``ir_attrs.METADATA``, the target's name and fingerprint, whether there is a
    ``decode`` and whether CaptureGraphs will add one in ``graphs``, and how many ``candidates`` are found: the
    runtime reads from the library itself what it has and what it was built for. Needs: to stand behind AddDecodeStep
    and AddCandidates.
    """

    def __init__(self, target: Target) -> None:
        """Take the target that the module is for."""
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Add the function."""
        facts = json.loads(mod.attrs[ir_attrs.METADATA])
        names = {variable.name_hint for variable in mod.get_global_vars()}
        facts |= {
            "target": self.target.name,
            "fingerprint": self.target.fingerprint,
            "decode": DECODE in names,
            "graphs": DECODE in names and self.target.kind == "cuda",
            "candidates": CANDIDATES if FINDS_CANDIDATES in names else 0,
        }
        builder = relax.BlockBuilder()
        with builder.function("metadata", []):
            builder.emit_func_output(tvm.ir.StringImm(json.dumps(facts, sort_keys=True)))
        updated = mod.clone()
        updated["metadata"] = builder.get()["metadata"]
        return updated
