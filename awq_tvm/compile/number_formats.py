"""Settling what a bundle computes and keeps in which number format: what was asked for, and what the target can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.models.precision import Precision, QuantizedShape

if TYPE_CHECKING:
    from awq_tvm.checkpoint import Checkpoint
    from awq_tvm.targets import Target


def choose_activations(target: Target, asked: str) -> Literal["float", "int8"]:
    """How quantized linears read their input; "auto" is the target's default.

    Raises:
        UnsupportedError: int8 on a target without int8 dot products.
        UsageError: no such mode.
    """
    if asked == "auto":
        return target.default_activations
    if asked == "int8" and not target.has_int8_dot:
        raise UnsupportedError(
            f"target {target.name} has no int8 dot product",
            where="--activations",
            fix="use --activations float",
        )
    modes: dict[str, Literal["float", "int8"]] = {"float": "float", "int8": "int8"}
    if asked in modes:
        return modes[asked]
    raise UsageError(
        f"unknown activation mode {asked!r}", where="--activations", fix="use auto, float or int8"
    )


def choose_precision(
    checkpoint: Checkpoint, target: Target, activations: str, dtype: str, kv_cache: str
) -> Precision:
    """The number formats of one compiled model.

    Args:
        checkpoint: what of it is quantized, and how.
        target: what it is for.
        activations: from ``choose_activations``.
        dtype: as asked for, see ``compile_model``.
        kv_cache: as asked for, likewise.

    Raises:
        UnsupportedError: a format that the target does not compute or cache in.
        UsageError: no such format.
    """
    quantized = {}
    if checkpoint.scheme is not None:
        schemes = {name: checkpoint.scheme.of(name) for name in checkpoint.quantized}
        quantized = {
            name: QuantizedShape(one.bits, one.group_size, one.act_order) for name, one in schemes.items()
        }
    computed_in = choose_dtype(target, dtype)
    cache_dtype = _cache_dtype(target, activations, computed_in, kv_cache)
    return Precision(
        computed_in, "float16", activations, quantized, cache_dtype, int8_cache=kv_cache == "int8"
    )


def choose_dtype(target: Target, asked: str) -> str:
    """What is computed in between kernels; "auto" is the target's own.

    Raises:
        UnsupportedError: another than the target computes in.
        UsageError: no such format.
    """
    if asked not in ("auto", "float32", "float16", "bfloat16"):
        raise UsageError(
            f"unknown number format {asked!r}", where="--dtype", fix="use auto, float32, float16 or bfloat16"
        )
    if asked in ("auto", target.compute_dtype):
        return target.compute_dtype
    if asked == "bfloat16" and target.has_bfloat16:
        return asked
    also = " and bfloat16" if target.has_bfloat16 else ""
    raise UnsupportedError(
        f"target {target.name} computes in {target.compute_dtype}{also}",
        where="--dtype",
        why=f"found {asked}; bfloat16 is for CUDA from compute capability 8.0 on",
        fix=f"leave out --dtype, which gives {target.compute_dtype}, or choose a target that has {asked}",
    )


def _cache_dtype(target: Target, activations: str, computed_in: str, asked: str) -> str:
    if asked == "auto" or (asked == "int8" and target.kind == "cpu"):
        return "float16" if activations == "int8" else computed_in
    if asked not in ("float32", "float16", "bfloat16", "int8"):
        raise UsageError(
            f"unknown KV cache {asked!r}",
            where="--kv-cache",
            fix="use auto, float32, float16, bfloat16 or int8",
        )
    if asked == "bfloat16" if target.kind == "cpu" else asked != computed_in:
        raise UnsupportedError(
            f"target {target.name} does not keep its KV cache in {asked}",
            where="--kv-cache",
            why="CPUs keep it in float32, float16 or int8"
            if target.kind == "cpu"
            else f"GPUs keep it in what they compute in, here {computed_in}",
            fix="use --kv-cache auto",
        )
    return asked
