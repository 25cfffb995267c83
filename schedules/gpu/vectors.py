"""Rows as vectors of 16 bytes."""

from __future__ import annotations

VECTOR_BYTES = 16
"""Of the widest load and store."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def in_a_vector(dtype: str) -> int:
    """Numbers of a vector."""
    return VECTOR_BYTES // _BYTES[dtype]


def vectors_of(features: int, dtype: str) -> int:
    """Vectors of a row, 0 where it is not a whole number of them or the dtype is none that kernels know."""
    if dtype not in _BYTES or features % in_a_vector(dtype):
        return 0
    return features // in_a_vector(dtype)
