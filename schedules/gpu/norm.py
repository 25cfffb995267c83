"""RMSNorm on CUDA and Metal: rows are read once, 16 bytes a thread at a time, and stay in registers till scaled.

The op: y[i] = weight * x[r(i)] / sqrt(mean(x[r(i)]^2) + eps), r(i) = i or, where only some rows are wanted, their
positions. One token is one row, and all else waits for it, so the roof is not bandwidth but how long a load, a
sum over threads and a store take one after the other: rows of up to a warp meet by shuffles alone, longer ones behind
one barrier.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import (
    WARP,
    Exchange,
    as_words,
    combine_lanes,
    halves_of,
    held,
    load_vector,
    pack,
    registers,
    store_vector,
    unpack,
)
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.schedules.attention.tile import f32, i32
from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.vectors import vectors_of

MOST_WARPS = 16
"""Of a row: 4096 numbers of 16 bits are a vector a thread, and blocks of more warps start later."""
SHORT_ROW_WARPS = 4
"""Of a block of rows that are no longer than a warp."""


def rms_norm(
    features: int, eps: float, dtype: str, exchange: Exchange, *, gathered: bool, weight_first: bool = False
) -> tirx.PrimFunc:
    """The scheduled PrimFunc: x [n, features], positions int32 [m] if gathered, weight [features], y [m, features].

    Args:
        features: of a row; whole vectors of 16 bytes, see ``vectors_of``.
        eps: what is added to the mean.
        dtype: of x, weight and y; sums are float32.
        exchange: of the target.
        gathered: whether only some rows are wanted; a position out of range reads the nearest row.
        weight_first: the launch may begin before the one before has ended, and no launch writes ``weight``: it is
            asked for before the wait. Else OverlapLaunches puts one in front of everything.
    """

    def emit() -> None:
        rows = size("n", "int64")
        wanted = size("m", "int64") if gathered else rows
        x = tensor("x", (rows, features), dtype)
        positions = tensor("positions", (wanted,), "int32") if gathered else None
        weight = tensor("weight", (features,), dtype)
        y = tensor("y", (wanted, features), dtype)
        rows_of = Rows(features, dtype, exchange)

        def weigh(own: Any, _: Any) -> Any:
            return rows_of.load(weight, tirx.const(0, "int64"), own)

        rows_of.launch(x, positions, y, eps, weigh, weight_first=weight_first)

    return build("rms_norm", emit, overlaps=not weight_first)


class Rows:
    """How threads stand over rows that are normalised.

    Args:
        features: of a row; whole vectors of 16 bytes.
        dtype: of rows and weight.
        exchange: of the target.
    """

    def __init__(self, features: int, dtype: str, exchange: Exchange) -> None:
        self.features, self.dtype, self.exchange = features, dtype, exchange
        self.vectors = vectors_of(features, dtype)
        self.warps = min(MOST_WARPS, -(-self.vectors // WARP))
        self.lanes = 1 << (min(self.vectors, WARP) - 1).bit_length()
        self.threads = self.lanes if self.warps == 1 else self.warps * WARP
        self.pieces = -(-self.vectors // self.threads)
        self.rows = WARP // self.lanes * SHORT_ROW_WARPS if self.warps == 1 else 1

    def launch(
        self,
        x: Any,
        positions: Any,
        y: Any,
        eps: float,
        weigh: Callable[[Any, Any], Any],
        spared: Callable[[Any], Any] | None = None,
        *,
        weight_first: bool = False,
    ) -> None:
        """Emit the kernel.

        Args:
            x: [rows, features], or several rows side by side in each of its own.
            positions: which of them are wanted, int32; None for all.
            y: [wanted, features], the same.
            eps: what is added to the mean.
            weigh: (vector of a thread, row of y) -> registers with the weight, of ``load``.
            spared: row of y -> whether it is copied as it is; None for none.
            weight_first: see ``rms_norm``; ``weigh`` looks at no row then.
        """
        rows, wanted = self._rows(x), self._rows(y)
        blocks = tirx.floordiv(wanted + (self.rows - 1), tirx.const(self.rows, "int64"))
        with (
            T.launch_thread("blockIdx.x", blocks) as block,
            T.launch_thread("threadIdx.x", self.threads * self.rows) as thread,
        ):
            own = held("own", thread % self.threads)
            weights: Any = None
            if weight_first:
                ptx.let_next_begin()
                weights = weigh(own, None)
                ptx.wait_for_launches()
            row = block * self.rows + thread // self.threads
            # Threads past the last row compute it again and do not store: shuffles need every lane.
            to = held("to", tirx.min(row, wanted - 1) if self.rows > 1 else row, "int64")
            source: Any = to
            if positions is not None:
                inside = tirx.max(positions[to].astype("int64"), tirx.const(0, "int64"))
                source = held("source", tirx.min(inside, rows - 1), "int64")
            words = self.load(x, source, own)
            if weights is None:
                weights = weigh(own, to)
            squares = registers("squares", 1)
            T.buffer_store(squares, f32(0), [0])
            for piece in range(self.pieces):
                total = sum((value * value for value in unpack(words, 4 * piece, self.dtype)), f32(0))
                T.buffer_store(squares, squares[0] + T.Select(self._has(own, piece), total, f32(0)), [0])
            mean = self._meet(squares, thread) / f32(self.features)
            factor = held("factor", f32(1) / tirx.sqrt(mean + f32(eps)), "float32")
            flat = as_words(y, wanted * self.vectors)
            for piece in range(self.pieces):
                values = zip(
                    unpack(words, 4 * piece, self.dtype), unpack(weights, 4 * piece, self.dtype), strict=True
                )
                results = [value * factor * scale for value, scale in values]
                if spared is None:
                    pack(words, 4 * piece, results, self.dtype)
                else:
                    with T.If(tirx.Not(spared(to))), T.Then():
                        pack(words, 4 * piece, results, self.dtype)
                with T.If(T.And(self._has(own, piece), row < wanted)), T.Then():
                    store_vector(flat, to * self.vectors + self._vector(own, piece), words, 4 * piece)

    def _rows(self, buffer: Any) -> Any:
        return buffer.shape[0] * (int(buffer.shape[1]) // self.features)

    def _has(self, own: Any, piece: int) -> Any:
        """Whether a thread's vector is one of the row's."""
        if (piece + 1) * self.threads <= self.vectors:
            return tirx.const(True, "bool")
        return own + piece * self.threads < self.vectors

    def _vector(self, own: Any, piece: int) -> Any:
        """Which vector a thread reads; those past the last read that."""
        vector = own + piece * self.threads
        return (
            vector if (piece + 1) * self.threads <= self.vectors else tirx.min(vector, i32(self.vectors - 1))
        )

    def load(self, buffer: Any, row: Any, own: Any) -> Any:
        """Emit the loads of a thread's vectors of a row of [rows, features], or of [features], into registers."""
        count = self._rows(buffer) * self.vectors if len(buffer.shape) == 2 else self.vectors
        flat, words = as_words(buffer, count), registers("words", 4 * self.pieces, "uint32")
        for piece in range(self.pieces):
            load_vector(words, 4 * piece, flat, row * self.vectors + self._vector(own, piece))
        return words

    def _meet(self, squares: Any, thread: Any) -> Any:
        """Emit the sum over the row's threads, in the same order each time."""
        combine_lanes(squares, 0, operator.add, self.exchange, halves_of(self.lanes))
        if self.warps == 1:
            return squares[0]
        sums = IRBuilder.name("sums", T.alloc_buffer((self.warps,), "float32", scope="shared"))
        with T.If(thread % WARP == 0), T.Then():
            T.buffer_store(sums, squares[0], [thread // WARP])
        T.evaluate(T.tvm_storage_sync("shared"))
        return sum((sums[warp] for warp in range(1, self.warps)), sums[0])
