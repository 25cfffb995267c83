"""Hopper's products of a warpgroup, each instruction as one statement of the IR: they go on while its threads do.

A product's sums and its left operand are registers that nobody may touch until it was waited for; its right operand
lies in shared memory, which stays as it is until then, and was made visible by ``fence_shared`` and a barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

PATTERN_BYTES = 1024
"""Eight columns of 128 bytes, whose chunks of 16 are swizzled: begins at a multiple of as many."""

STEP_16 = 2
"""What a descriptor grows by for the next 16 k."""

MOST_PENDING = 7
"""Groups that a wait can leave under way."""


def descriptor(address: Any) -> Any:
    """The right operand [K, N] in shared memory: by its k, columns 128 bytes apart, swizzled.

    Args:
        address: where it begins, uint32.
    """
    # Of columns in eights, a pattern apart; the distance along k is not used with this swizzle.
    fixed = 1 << 62 | (PATTERN_BYTES >> 4) << 32 | 1 << 16
    start = T.Cast("uint64", T.bitwise_and(address >> T.uint32(4), T.uint32(0x3FFF)))
    return T.bitwise_or(start, T.uint64(fixed))


def multiply(d: Sequence[Any], a: Sequence[Any], b: Any, dtype: str) -> None:
    """Emit the beginning of D[64, N] += A[64, 16] @ B[16, N], in float32.

    Args:
        d: N / 2 float32 of every thread: as `mma.m16n8k16` has them, for each warp 16 rows.
        a: four registers of every thread, likewise.
        b: a descriptor.
        dtype: of A and B, "float16" or "bfloat16".
    """
    kind, columns = {"float16": "f16", "bfloat16": "bf16"}[dtype], 2 * len(d)
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind}"
    T.evaluate(T.ptx[name](*d, *a, b, True, 1, 1, 0))


def fence_registers() -> None:
    """Emit what stands between writing registers and a product that uses them."""
    T.evaluate(T.ptx["wgmma.fence.sync.aligned"]())


def fence_shared() -> None:
    """Emit what stands between writing shared memory and the barrier before a product that reads it."""
    T.evaluate(T.ptx["fence.proxy.async.shared::cta"]())


def commit() -> None:
    """Emit the end of a group of products."""
    T.evaluate(T.ptx["wgmma.commit_group.sync.aligned"]())


def wait(left: int) -> None:
    """Emit a wait until at most ``left`` of the newest groups are under way."""
    T.evaluate(T.ptx["wgmma.wait_group.sync.aligned"](left))
