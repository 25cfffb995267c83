"""RMSNorm of each head of q and k where they lie beside v, on CUDA and Metal: one launch, and v is copied along.

Else q, k and v are cut out of the linear's result, two are normalised, and all three are put together again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import Exchange, held, registers
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.schedules.gpu.norm import Rows


@dataclass(frozen=True)
class Part:
    """Heads that follow each other.

    Args:
        heads: how many.
        normalised: with a weight of their own, or left as they are.
    """

    heads: int
    normalised: bool


def norm_heads(
    parts: tuple[Part, ...], head_dim: int, eps: float, dtype: str, exchange: Exchange
) -> tirx.PrimFunc:
    """The scheduled PrimFunc: x [n, heads * head_dim], the parts' weights [head_dim], y as x.

    Args:
        parts: in the order of their heads.
        head_dim: whole vectors of 16 bytes, see ``vectors_of``.
        eps: what is added to a head's mean.
        dtype: of all; sums are float32.
        exchange: of the target.
    """
    heads = sum(part.heads for part in parts)

    def emit() -> None:
        tokens = size("n", "int64")
        x = tensor("x", (tokens, heads * head_dim), dtype)
        weights = [
            tensor(f"weight{number}", (head_dim,), dtype) if part.normalised else None
            for number, part in enumerate(parts)
        ]
        y = tensor("y", (tokens, heads * head_dim), dtype)
        rows = Rows(head_dim, dtype, exchange)
        ends = [sum(part.heads for part in parts[: number + 1]) for number in range(len(parts))]

        def head_of(row: Any) -> Any:
            return tirx.floormod(row, tirx.const(heads, "int64"))

        def weigh(own: Any, row: Any) -> Any:
            found = registers("weights", 4 * rows.pieces, "uint32")
            head = held("head", head_of(row))
            for end, part, weight in zip(ends, parts, weights, strict=True):
                if weight is None:
                    continue
                with T.If(T.And(end - part.heads <= head, head < end)), T.Then():
                    words = rows.load(weight, tirx.const(0, "int64"), own)
                    for i in range(4 * rows.pieces):
                        T.buffer_store(found, words[i], [i])
            return found

        def spared(row: Any) -> Any:
            head, found = head_of(row), tirx.const(False, "bool")
            for end, part in zip(ends, parts, strict=True):
                if not part.normalised:
                    found = T.Or(found, T.And(end - part.heads <= head, head < end))
            return found

        rows.launch(x, None, y, eps, weigh, spared)

    return build("norm_heads", emit, overlaps=True)
