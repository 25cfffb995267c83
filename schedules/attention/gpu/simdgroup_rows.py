"""A SIMD group's rows of prefill on 8 x 8 matrices: Q, S, P and O, and S on its way through threadgroup memory to P.

Which numbers of a matrix a lane holds Metal does not say, so lanes see S and leave P in memory; there rows are an odd
number of eights apart, which has no two lanes meet in a bank. O is scaled row by row as the product of a diagonal
matrix and itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import WARP, any_simd_lane, registers, simd_shuffle_xor
from awq_tvm.schedules.attention.gpu.prefill_problem import Rows, Seen
from awq_tvm.schedules.attention.gpu.simdgroup_prefill_config import SimdgroupPrefillConfig, ThreadgroupPlan
from awq_tvm.schedules.attention.gpu.soft_rows import EIGHT, SoftRows
from awq_tvm.schedules.attention.tile import f32
from awq_tvm.schedules.metal.config import FLOAT_BYTES, HALF_BYTES, SIDE
from awq_tvm.schedules.metal.matrices import clear, load, matrices, multiply, store

Place = Callable[[int, int], Any]
"""(which eight of rows, keys or values; which of features) -> the address of 8 x 8 float16, ``plan.stride`` apart."""


class SimdgroupRows(SoftRows):
    """Emits what the SIMD group keeps of its rows from tile to tile.

    Args:
        config: sizes.
        plan: of threadgroup memory.
        rows: of the threadgroup.
        seen: of ``KeysOfRows``.
        simdgroup: which of the threadgroup's.
        first: row of the SIMD group in the threadgroup.
        lane: of the thread.
        floats: threadgroup memory as float32.
        halves: the same as float16.
    """

    exchange = staticmethod(simd_shuffle_xor)

    def __init__(
        self,
        config: SimdgroupPrefillConfig,
        plan: ThreadgroupPlan,
        rows: Rows,
        seen: Seen,
        simdgroup: Any,
        first: Any,
        lane: Any,
        floats: Any,
        halves: Any,
    ) -> None:
        super().__init__(rows, first, lane, config.row_eights, config.tile_keys)
        self._plan, self._floats, self._halves = plan, floats, halves
        self._features, self._keys = plan.shape.head_dim // SIDE, config.tile_keys // EIGHT
        self._apart = plan.stride * SIDE
        self._own_floats = (plan.scores_at + simdgroup * plan.own_scores) // FLOAT_BYTES
        self._own_halves = self._own_floats * (FLOAT_BYTES // HALF_BYTES)
        self._diagonal = plan.matrices_at // FLOAT_BYTES + simdgroup * (SIDE * SIDE)
        self._sums = matrices("sums", self._eights * self._features, "float32")
        clear(self._sums, self._eights * self._features)
        self._zero = matrices("zero", 1, "float32")
        clear(self._zero, 1)
        held = self._features if config.held_queries else 1
        self._queries = matrices("queries", self._eights * held, "float16")
        self._query_at: Place | None = None
        for number in range(0, SIDE * SIDE, WARP):
            T.buffer_store(floats, f32(0), [self._diagonal + (number + lane)])
        self.limit(seen)

    def hold_queries(self, place: Place) -> None:
        """Emit the loads of Q to registers, to stay there."""
        for eight in range(self._eights):
            for features in range(self._features):
                load(self._queries, eight * self._features + features, place(eight, features), self._apart)

    def read_queries_from(self, place: Place) -> None:
        """Have Q read from threadgroup memory whenever it is multiplied."""
        self._query_at = place

    def _query(self, eight: int, features: int) -> int:
        """Emit the load of a matrix of Q where it is not held; which of the matrices it is."""
        if self._query_at is None:
            return eight * self._features + features
        load(self._queries, eight, self._query_at(eight, features), self._apart)
        return eight

    def score(self, place: Place) -> None:
        """Emit S of a tile, and the lanes' own of it to registers."""
        products = matrices("products", self._eights * self._keys, "float32")
        clear(products, self._eights * self._keys)
        keys = matrices("keys", 1, "float16")
        for features in range(self._features):
            own = [self._query(eight, features) for eight in range(self._eights)]
            for run in range(self._keys):
                load(keys, 0, place(run, features), self._apart, turned=True)
                for eight in range(self._eights):
                    multiply(products, eight * self._keys + run, self._queries, own[eight], keys, 0)
        stride = self._plan.scores_stride
        for eight in range(self._eights):
            for run in range(self._keys):
                at = self._own_floats + (eight * EIGHT * stride + run * EIGHT)
                store(products, eight * self._keys + run, self._floats.ptr_to([at]), stride)
        meet()
        self._scores = registers("scores", self._eights * self._keys * 2)
        for eight in range(self._eights):
            for run in range(self._keys):
                found = self._floats[T.Ramp(self._own_floats + self._lane_at(eight, run), 1, 2)]
                T.buffer_store(self._scores, found, [T.Ramp(self._at(eight, run, 0), 1, 2)])

    def _lane_at(self, eight: int, run: int) -> Any:
        """Where among the SIMD group's scores, or weights, a lane's two of an eight of keys are."""
        return (self._row + EIGHT * eight) * self._plan.scores_stride + (2 * self._column + EIGHT * run)

    def gather(self, place: Place) -> None:
        """Emit O += P V."""
        stride = self._plan.scores_stride
        # Every lane has its scores.
        meet()
        for eight in range(self._eights):
            for run in range(self._keys):
                pair = self._scores[T.Ramp(self._at(eight, run, 0), 1, 2)].astype("float16x2")
                T.buffer_store(
                    self._halves, pair, [T.Ramp(self._own_halves + self._lane_at(eight, run), 1, 2)]
                )
        meet()
        weights = matrices("weights", self._eights * self._keys, "float16")
        for eight in range(self._eights):
            for run in range(self._keys):
                at = self._own_halves + (eight * EIGHT * stride + run * EIGHT)
                load(weights, eight * self._keys + run, self._halves.ptr_to([at]), stride)
        values = matrices("values", 1, "float16")
        for features in range(self._features):
            for run in range(self._keys):
                load(values, 0, place(run, features), self._apart)
                for eight in range(self._eights):
                    at = eight * self._features + features
                    multiply(self._sums, at, weights, eight * self._keys + run, values, 0)

    def leave(self, eight: int, place: Callable[[int], Any]) -> None:
        """Emit the stores of O of an eight of rows; ``place`` is the address of an eight of features."""
        for features in range(self._features):
            store(self._sums, eight * self._features + features, place(features), self._plan.sums_stride)

    def _at(self, eight: int, keys: int, i: int) -> int:
        return 2 * (eight * self._keys + keys) + i

    def _scale(self, eight: int, factor: Any) -> None:
        if eight:
            # The factors of the eight before were read.
            meet()
        with T.If(self._column == 0), T.Then():
            T.buffer_store(self._floats, factor, [self._diagonal + self._row * (SIDE + 1)])
        meet()
        factors = matrices("factors", 1, "float32")
        load(factors, 0, self._floats.ptr_to([self._diagonal]), SIDE)
        for features in range(self._features):
            at = eight * self._features + features
            multiply(self._sums, at, factors, 0, self._sums, at, self._zero)

    def _exp2(self, into: Any, at: int, value: Any) -> None:
        T.buffer_store(into, tirx.exp2(value), [at])

    def _any_lane(self, holds: Any) -> Any:
        return any_simd_lane(holds)


def meet() -> None:
    """Emit the barrier of a SIMD group, after which its lanes see each other's threadgroup memory."""
    T.evaluate(T.tvm_storage_sync("warp"))
