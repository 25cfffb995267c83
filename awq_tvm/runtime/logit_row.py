"""Logits that are still on the device, and what the device has found out about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Candidates:
    """The C largest of a row of more logits.

    Attributes:
        logits: float32 [C], largest first; what is not a number counts as the largest.
        ids: int64 [C], of equal logits the lower first.
        total: the sum of exp(x - max) over the row, up to the rounding of float32.
        tempered: the sum of exp((x - max) / temperature), the same.
        temperature: for which that is, above 0; 1 where none was given.
    """

    logits: np.ndarray
    ids: np.ndarray
    total: float
    tempered: float
    temperature: float

    def log_chances(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``sampler.log_chances`` of the whole row, of the candidates alone: [C], and the first ids."""
        shifted = self.logits.astype(np.float64) - float(self.logits[0])
        return shifted - np.log(self.total), self.ids[:count]


class DeviceRow:
    """One row of logits.

    Args:
        candidates: of it.
        read: copies the row, float32 [V]; possible until the model's next call.
    """

    def __init__(self, candidates: Candidates, read: Callable[[], np.ndarray]) -> None:
        self.candidates, self._read = candidates, read

    def whole(self) -> np.ndarray:
        """The logits, float32 [V]."""
        return self._read()


def likeliest(row: np.ndarray | DeviceRow) -> int:
    """The token of the largest logit, of equal ones the first."""
    return int(row.candidates.ids[0]) if isinstance(row, DeviceRow) else int(row.argmax())
