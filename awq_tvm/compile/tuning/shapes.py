"""Which linears are to be tuned: those of a model as it would be compiled, or shapes that the user names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import tvm

from awq_tvm import ir_attrs
from awq_tvm.compile.driver import read_source
from awq_tvm.compile.number_formats import choose_dtype
from awq_tvm.compile.tuning.problem import Problem, Spec, plain
from awq_tvm.errors import UsageError
from awq_tvm.models.export import export_model
from awq_tvm.passes import pipeline
from awq_tvm.passes.attach_schedules import call_counts
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target

_SHAPES = re.compile(r"\d{1,8}x\d{1,8}(,\d{1,8}x\d{1,8})*")


@dataclass(frozen=True)
class Wanted:
    """A linear or an attention kernel and how often a model calls it.

    Attributes:
        spec: without bias, activation function and residual.
        count: calls in one pass through the model.
        problem: None where there is nothing to tune.
    """

    spec: Spec
    count: int
    problem: Problem | None


def are_shapes(text: str) -> bool:
    """Whether it is a list of shapes, "576x960,1536x576", and not a model."""
    return _SHAPES.fullmatch(text) is not None


def shapes_wanted(
    text: str,
    target: Target,
    *,
    bits: int = 4,
    group_size: int = 64,
    activations: str = "auto",
    dtype: str = "auto",
) -> list[Wanted]:
    """Quantized linears of the shapes KxN that are named.

    Raises:
        UnsupportedError: bits or group size do not go with a shape, or the target does not compute in the dtype.
        UsageError: a shape of nothing, or no such dtype.
    """
    mode = target.default_activations if activations == "auto" else activations
    computed_in = choose_dtype(target, dtype)
    found = []
    for shape in dict.fromkeys(text.split(",")):
        k, n = map(int, shape.split("x"))
        if not k or not n:
            raise UsageError(
                f"there is no linear of {shape}", where="the shapes", fix="name inputs x outputs"
            )
        spec = MatmulSpec(k, n, bits, group_size, computed_in, activations=mode)
        found.append(Wanted(spec, 1, Problem.of(spec, target)))
    return found


def model_wanted(
    model: str,
    target: Target,
    *,
    activations: str = "auto",
    dtype: str = "auto",
    vocabulary_bits: int = 8,
    opt: int = 2,
) -> list[Wanted]:
    """The linears and attention kernels of a quantized checkpoint, those of which a token reads most bytes first.

    Raises:
        AwqTvmError: what `compile` refuses.
        UsageError: the checkpoint is not quantized.
    """
    source = read_source(model, target, activations, dtype, vocabulary_bits=vocabulary_bits)
    if not source.checkpoint.quantized:
        raise UsageError(
            "this model is not quantized",
            where=model,
            why="which kernels it has depends on how it is quantized",
            fix=f"python -m awq_tvm quantize {model} -o DIR, and tune DIR",
        )
    with tvm.target.Target(target.tvm_target_with_host) as tvm_target:
        mod = export_model(source.config, source.precision, source.limits, tvm_target)
    mod = pipeline.run(mod, target, opt, until="attach_schedules")
    calls, counts = call_counts(mod), Counter[Spec]()
    for variable, func in mod.functions_items():
        op = func.attrs.get(ir_attrs.OP) if func.attrs is not None else None
        if op == ir_attrs.OP_DEQUANTIZE_MATMUL:
            counts[plain(MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC]))] += calls[variable.name_hint]
        elif op == ir_attrs.OP_DENSE_MATMUL:
            counts[DenseSpec.from_json(func.attrs[ir_attrs.DENSE_SPEC])] += calls[variable.name_hint]
        elif op == ir_attrs.OP_ATTENTION:
            kernel = AttentionSpec.from_json(func.attrs[ir_attrs.ATTENTION_SPEC])
            counts[kernel] += int(func.attrs[ir_attrs.LAYERS])
    wanted = [Wanted(spec, count, Problem.of(spec, target)) for spec, count in counts.items()]
    return sorted(wanted, key=lambda one: (-_bits_read(one), repr(one.spec)))


def _bits_read(one: Wanted) -> int:
    if isinstance(one.spec, AttentionSpec):
        return one.count * one.spec.bytes_read * 8
    bits = one.spec.bits if isinstance(one.spec, MatmulSpec) else 16
    return one.count * one.spec.in_features * one.spec.out_features * bits
