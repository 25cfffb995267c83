from __future__ import annotations

import json

import tvm
from tvm import relax
from tvm.runtime.vm import VirtualMachine

from awq_tvm import ir_attrs
from awq_tvm.passes.attach_metadata import AttachMetadata
from awq_tvm.targets import resolve


def test_the_library_says_what_it_is() -> None:
    target = resolve("x86-64-v3")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    with builder.function("forward", [x]):
        builder.emit_func_output(x)
    before = builder.get().with_attr(
        ir_attrs.METADATA, json.dumps({"max_logit_rows": 7, "model_type": "llama"})
    )
    after = AttachMetadata(target)(before)
    tvm.ir.assert_structural_equal(after["forward"], before["forward"])
    executable = tvm.compile(after, tvm.target.Target(target.tvm_target))
    facts = json.loads(str(VirtualMachine(executable, tvm.cpu())["metadata"]()))
    assert facts == {
        "max_logit_rows": 7,
        "model_type": "llama",
        "target": "x86-64-v3",
        "fingerprint": target.fingerprint,
        "decode": False,
        "graphs": False,
        "candidates": 0,
    }
