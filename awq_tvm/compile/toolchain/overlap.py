"""How kernels that wait for the launches before them are launched: so that they may begin before those have ended.

TVM's runtime sets CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION of a launch where a tag is among the
parameters of the kernel; its compiler of this version has no way to ask for it, so it is put there behind its passes.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain.statements import inner_statements

PIPELINE = "awq_tvm"
"""TVM's own lowering of PrimFuncs, and ``MarkOverlaps`` behind it: a name that ``tvm.compile`` takes."""

_PARAMETERS = "tirx.kernel_launch_params"
_NO_ALIAS = "tirx.noalias"


@tirx.transform.prim_func_pass(opt_level=0, name="MarkOverlaps")
class MarkOverlaps:
    """Give kernels that wait the tag, and take from them that their buffers are written by nobody else.

    What they read is written by other launches while they already run: were pointers `__restrict__`, a compiler might
    load through one before the wait, and past the cache that the wait makes valid. Other kernels stay as they are.
    """

    def transform_function(self, func: Any, _mod: Any, _context: Any) -> Any:
        """Mark a kernel."""
        if _PARAMETERS not in (func.attrs or {}) or not waits(func):
            return func
        # The first: what comes behind is read by its place.
        tags = [ir_attrs.OVERLAP_TAG, *map(str, func.attrs[_PARAMETERS])]
        return func.with_attr(_PARAMETERS, tags).with_attr(_NO_ALIAS, False)


def marking(finish_device: Any) -> Any:
    """TVM's last pass over kernels, with ``MarkOverlaps`` before it."""
    return tvm.transform.Sequential([MarkOverlaps(), finish_device])


def _pipeline() -> tuple[Any, Any, Any]:
    passes, finish_host, finish_device = tirx.get_tir_pipeline("default")
    return passes, finish_host, lambda: marking(finish_device())


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)


def waits(func: Any) -> bool:
    """Whether a kernel waits for the launches before it."""
    return _holds_wait(func.body)


def _holds_wait(statement: Any) -> bool:
    if isinstance(statement, tirx.Evaluate):
        call = statement.value
        # An instruction is a call of TVM's operator of that name, its modifiers among the arguments.
        return (
            isinstance(call, tvm.ir.Call)
            and getattr(call.op, "name", "").endswith(".griddepcontrol")
            and "wait" in [getattr(argument, "value", None) for argument in call.args]
        )
    return any(map(_holds_wait, inner_statements(statement)))
