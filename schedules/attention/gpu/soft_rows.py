"""The softmax of a warp's (or SIMD group's) rows of prefill, tile by tile: which keys each sees, S to P, m and l.

Rows come in eights. Of each a lane has the columns 2 c and 2 c + 1 of every eight keys, c = lane % 4, in row
lane / 4: what ``mma`` leaves in its registers, and an order in which lanes read memory without two meeting in a bank.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import Exchange, combine_lanes, held, registers
from awq_tvm.schedules.attention.gpu.prefill_problem import Rows, Seen
from awq_tvm.schedules.attention.tile import MASKED, NOTHING, f32

EIGHT = 8

_QUAD = (1, 2)
"""Distances between the lanes that share a row."""

_COLUMN = (4, 8, 16)
"""Distances between those that share a column."""


class SoftRows(ABC):
    """Emits it. What products are made of, and how lanes meet, is a subclass's.

    Args:
        rows: of the block.
        first: row of the warp in the block.
        lane: of the thread.
        eights: of the warp's rows.
        tile_keys: keys of a tile.
    """

    exchange: Exchange

    def __init__(self, rows: Rows, first: Any, lane: Any, eights: int, tile_keys: int) -> None:
        self._rows, self._first, self._eights, self._tile_keys = rows, first, eights, tile_keys
        self._row, self._column = held("row", lane // 4), held("column", lane % 4)
        self._maximum, self._total = registers("maximum", eights), registers("total", eights)
        self._scores: Any = None
        for eight in range(eights):
            T.buffer_store(self._maximum, f32(NOTHING), [eight])
            T.buffer_store(self._total, f32(0), [eight])

    @abstractmethod
    def _at(self, eight: int, keys: int, i: int) -> int:
        """Where in the scores the lane's column ``i`` of an eight of keys is."""

    @abstractmethod
    def _scale(self, eight: int, factor: Any) -> None:
        """Emit the multiplication of O of an eight of rows; each lane has the factor of its row."""

    @abstractmethod
    def _exp2(self, into: Any, at: int, value: Any) -> None:
        """Emit ``into[at]`` = 2^value."""

    @abstractmethod
    def _any_lane(self, holds: Any) -> Any:
        """Whether a condition holds in any lane; every lane comes."""

    def limit(self, seen: Seen) -> None:
        """Emit which keys a lane's rows see, and which all rows of the warp see, and any."""
        self._high, self._low = registers("high", self._eights, "int32"), None
        for eight in range(self._eights):
            low, high = seen(self._rows.inside(self._own(eight)))
            T.buffer_store(self._high, high, [eight])
            if low is not None:
                if self._low is None:
                    self._low = registers("low", self._eights, "int32")
                T.buffer_store(self._low, low, [eight])
        self._all_before = self._over_warp("all_before", self._high, tirx.min)
        self._any_before = self._over_warp("any_before", self._high, tirx.max)
        if self._low is not None:
            self._all_from = self._over_warp("all_from", self._low, tirx.max)
            self._any_from = self._over_warp("any_from", self._low, tirx.min)

    def _over_warp(self, name: str, of: Any, choose: Callable[[Any, Any], Any]) -> Any:
        found = registers(name, 1, "int32")
        T.buffer_store(found, of[0], [0])
        for eight in range(1, self._eights):
            T.buffer_store(found, choose(found[0], of[eight]), [0])
        combine_lanes(found, 0, choose, self.exchange, _COLUMN)
        return found[0]

    def _own(self, eight: int) -> Any:
        """The lane's row in the block."""
        return self._first + (self._row + EIGHT * eight)

    def see_some(self, base: Any) -> Any:
        """Whether there are rows, and any sees a key of the tile."""
        seen = T.And(self._first < self._rows.count, base < self._any_before)
        if self._low is None:
            return seen
        return T.And(seen, base + self._tile_keys > self._any_from)

    def mask(self, base: Any) -> None:
        """Emit the masking of keys that a row does not see, if some row does not see some key."""
        keys = self._tile_keys
        wanted = base + keys > self._all_before
        if self._low is not None:
            wanted = T.Or(wanted, base < self._all_from)
        with T.If(wanted), T.Then():
            own = held("own_key", base + 2 * self._column)
            for eight in range(self._eights):
                for run in range(keys // EIGHT):
                    for i in range(2):
                        key, at = own + (EIGHT * run + i), self._at(eight, run, i)
                        seen = key < self._high[eight]
                        if self._low is not None:
                            seen = T.And(seen, key >= self._low[eight])
                        T.buffer_store(self._scores, T.Select(seen, self._scores[at], f32(MASKED)), [at])

    def soften(self, scale: Any) -> None:
        """Emit what turns S into P, not rounded yet, and brings m, l and O up to date."""
        grown, shrinks = registers("grown", 1, "bool"), registers("shrinks", self._eights)
        T.buffer_store(grown, tirx.const(False, "bool"), [0])
        for eight in range(self._eights):
            own = [self._at(eight, run, i) for run in range(self._tile_keys // EIGHT) for i in range(2)]
            highest = registers("highest", 1)
            T.buffer_store(highest, self._scores[own[0]], [0])
            for at in own[1:]:
                T.buffer_store(highest, T.max(highest[0], self._scores[at]), [0])
            combine_lanes(highest, 0, T.max, self.exchange, _QUAD)
            T.buffer_store(highest, T.max(self._maximum[eight], highest[0] * scale), [0])
            T.buffer_store(grown, T.Or(grown[0], highest[0] > self._maximum[eight]), [0])
            self._exp2(shrinks, eight, self._maximum[eight] - highest[0])
            T.buffer_store(self._maximum, highest[0], [eight])
            T.buffer_store(self._total, self._total[eight] * shrinks[eight], [eight])
            for at in own:
                self._exp2(self._scores, at, self._scores[at] * scale - highest[0])
                T.buffer_store(self._total, self._total[eight] + self._scores[at], [eight])
        # After a few tiles hardly any row finds a higher score.
        with T.If(self._any_lane(grown[0])), T.Then():
            for eight in range(self._eights):
                self._scale(eight, shrinks[eight])

    def finish(self) -> None:
        """Emit the sum of l over the lanes of a row, and the division of O; a row that saw no key has 0."""
        for eight in range(self._eights):
            combine_lanes(self._total, eight, operator.add, self.exchange, _QUAD)
            seen = self._total[eight] > f32(0)
            share = T.Select(seen, f32(1) / T.Select(seen, self._total[eight], f32(1)), f32(0))
            self._scale(eight, held("share", share, "float32"))

    def store_log_sums(self, log_sum: Any) -> None:
        """Emit log_sum = m + log2(l)."""
        for eight in range(self._eights):
            row = held("own_row", self._own(eight))
            with T.If(T.And(self._column == 0, row < self._rows.count)), T.Then():
                seen, total = self._total[eight] > f32(0), self._total[eight]
                found = self._maximum[eight] + tirx.log2(T.Select(seen, total, f32(1)))
                T.buffer_store(log_sum, T.Select(seen, found, f32(NOTHING)), [*self._rows.place(row)])
