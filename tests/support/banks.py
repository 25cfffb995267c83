"""Counts of lanes that meet in a bank of threadgroup memory, from the addresses in generated Metal."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LANES, BANKS, WORD = 32, 32, 4
"""Of a SIMD group, of a core's threadgroup memory, and the bytes of a bank's word."""


def most_in_a_bank(addresses: Array, width: int) -> int:
    """The most lanes that meet in a bank, when lanes come by as many as fill all banks once.

    Args:
        addresses: of the lanes in their order, in bytes.
        width: bytes that each touches.
    """
    turns = addresses.reshape(-1, BANKS * WORD // width)
    banks = (turns[..., None] + np.arange(0, width, WORD)) // WORD % BANKS
    return max(int(np.bincount(turn.ravel(), minlength=BANKS).max()) for turn in banks)


def vectors_stored(source: str, array: str, threads: int) -> list[Array]:
    """Which of an array's vectors each thread writes, for each store that its thread's number alone decides."""
    found = []
    for index in re.findall(rf"\b{array}\[(.*)\] = ", source):
        words = index.replace("(int)", "").replace("threadIdx.x", "thread")
        if not re.search(r"[A-Za-z_]", words.replace("thread", "")):
            found.append(np.array([eval(words, {}, {"thread": thread}) for thread in range(threads)]))
    return found
