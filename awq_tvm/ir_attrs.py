"""Names of the PrimFunc and IRModule attributes through which passes and schedules talk to each other.

A quantized linear is recognised by these attributes, never by the name of a function.
"""

from __future__ import annotations

OP = "awq.op"
"""What a PrimFunc computes: one of the ``OP_*`` values."""

OP_DEQUANTIZE = "dequantize"
"""W[N, K] from (qweight, scales, zeros)."""

OP_DEQUANTIZE_MATMUL = "dequantize_matmul"
"""y[M, N] = epilogue(x[M, K] @ dequantize(...).T); described in full by ``MATMUL_SPEC``."""

OP_DEQUANTIZE_TAKE = "dequantize_take"
"""Rows of a quantized embedding, dequantized as they are gathered."""

OP_DENSE_MATMUL = "dense_matmul"
"""y[M, N] = x[M, K] @ W.T with an unquantized W[N, K]; described in full by ``DENSE_SPEC``."""

OP_DENSE_TAKE = "dense_take"
"""Rows of an unquantized embedding whose weight is in the layout of a matmul."""

OP_ATTENTION = "attention"
"""A kernel of the paged cache; described in full by ``ATTENTION_SPEC``."""

BITS = "awq.bits"
GROUP_SIZE = "awq.group_size"
LAYOUT = "awq.layout"
"""Name of the weight layout (``awq_tvm.schedules.layout``) that the weight parameters of a PrimFunc are in."""

MATMUL_SPEC = "awq.matmul_spec"
"""JSON of ``awq_tvm.schedules.spec.MatmulSpec``."""

DENSE_SPEC = "awq.dense_spec"
"""JSON of ``awq_tvm.schedules.spec.DenseSpec``."""

ATTENTION_SPEC = "awq.attention_spec"
"""JSON of ``awq_tvm.schedules.attention.rule.AttentionSpec``."""

LAYERS = "awq.layers"
"""How many layers call an attention kernel: the cache runtime does, so that no call site says it."""

SCHEDULE = "awq.schedule"
"""Name of the schedule rule that wrote the body of a PrimFunc."""

PARAMETER_PLAN = "awq.parameter_plan"
"""IRModule attribute, JSON: for every weight parameter, in order, the checkpoint tensors it is made of."""

INPUTS = "awq.inputs"
"""Of a Relax function that a pass has added: how many of its parameters are inputs; what follows are weights. TVM's
own ``num_input`` would have it make one parameter of all weights."""

OVERLAPS = "awq.overlaps"
"""Of a PrimFunc whose kernels may begin before the launch before has ended, where the target's can: they use nothing
of what was not there yet once they have waited for it at their beginning."""

OVERLAP_TAG = "tirx.use_programtic_dependent_launch"
"""Among the launch parameters of a kernel that may begin early, as TVM's runtime spells it."""

IS_SCHEDULED = "tirx.is_scheduled"
"""TVM's own mark: leave this PrimFunc's body alone."""

COVERAGE = "awq.coverage"
"""IRModule attribute, JSON: which schedule serves each fused kernel, how often it is called, and why."""

METADATA = "awq.metadata"
"""IRModule attribute, JSON: facts about the model and its limits that the library is to carry."""

WORKSPACE = "awq.workspace"
"""Attribute of a Relax function of fixed shapes: the name of the function that is to allocate what it computes in."""

COMPUTES_IN_PARAMETERS = "awq.computes_in_parameters"
"""Attribute of a Relax function that allocates nothing: all that it computes in is among its parameters."""
