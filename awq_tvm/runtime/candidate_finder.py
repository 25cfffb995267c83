"""Rows of logits on a GPU, with the candidates that the bundle's own function finds in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from awq_tvm.runtime.logit_row import Candidates, DeviceRow

if TYPE_CHECKING:
    from awq_tvm.runtime.tvm_library import TvmRuntime

_LARGEST = 1e38
"""Of what the device multiplies with: a temperature below its inverse leaves the most likely token alone, too."""


class CandidateFinder:
    """Finds them.

    Args:
        tvm: the runtime with the device.
        function: ``candidates`` of the bundle.
        count: how many it finds.
    """

    def __init__(self, tvm: TvmRuntime, function: Any, count: int) -> None:
        self._tvm, self._function, self._count = tvm, function, count
        self._last: tuple[tuple[float, ...], Any] = ((), None)

    def rows(self, logits: Any, temperatures: Sequence[float]) -> list[DeviceRow]:
        """The rows of logits float32 [m, V] on the device, each to be drawn from at its temperature."""
        effective = [temperature or 1.0 for temperature in temperatures]
        found = self._tvm.array(self._function(logits, self._inverses(tuple(effective))))
        whole = cache(lambda: self._tvm.array(logits))
        return [
            DeviceRow(self._candidates(row, temperature), partial(_row, whole, number))
            for number, (row, temperature) in enumerate(zip(found, effective, strict=True))
        ]

    def _candidates(self, row: np.ndarray, temperature: float) -> Candidates:
        count = self._count
        ids = row[count : 2 * count].view(np.int32).astype(np.int64)
        total, tempered = (float(value) for value in row[2 * count : 2 * count + 2])
        return Candidates(row[:count], ids, total, tempered, temperature)

    def _inverses(self, temperatures: tuple[float, ...]) -> Any:
        """On the device; those of the last call, mostly, which are there."""
        if self._last[0] != temperatures:
            with np.errstate(over="ignore"):
                inverses = np.minimum(1 / np.array(temperatures), _LARGEST).astype(np.float32)
            self._last = (temperatures, self._tvm.tensor(inverses))
        return self._last[1]


def _row(whole: Callable[[], np.ndarray], number: int) -> np.ndarray:
    row: np.ndarray = whole()[number]
    return row
