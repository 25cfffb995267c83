"""Random queries, keys and values of an attention kernel, and what every candidate must compute from them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from awq_tvm.compile.tuning.numbers import Array, Bound
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.spaces import CONTEXT

LENGTHS = (CONTEXT, 37, PAGE_SIZE, 1)
"""Keys that the sequences of a batch see in turn: all of them, and few, where a key more or less shows."""

SHIFT = 5
"""Pages lie in no order: the next one of a sequence is so many further."""


class AttentionNumbers:
    """The cached keys and values, or the new ones, and the output in float64.

    Sequences share the pages, so that however many there are, as much is read from memory.

    Args:
        spec: the kernel.
        rows: the largest M: sequences of a decode, else new tokens.

    Attributes:
        packed: pages, or keys and values: what comes from memory.
        bound: of ``error``.
        unit: of ``error``, in words.
    """

    bound = 1e-5
    unit = "a value's standard deviation, beyond what rounding the output does"

    def __init__(self, spec: AttentionSpec, rows: int) -> None:
        rng = np.random.default_rng(20220527)
        self._spec, shape = spec, spec.shape
        self._q = rng.standard_normal((rows, shape.heads, shape.head_dim)).astype(shape.dtype)
        self._scale = shape.head_dim**-0.5
        keys = rows if spec.kernel == "prefill_ragged" else CONTEXT
        if spec.kernel == "prefill_ragged":
            size = (keys, shape.kv_heads, shape.head_dim)
            self.packed = tuple(rng.standard_normal(size).astype(shape.dtype) for _ in "kv")
            self._k, self._v = (array.astype(np.float64) for array in self.packed)
            return
        count = -(-CONTEXT // PAGE_SIZE)
        step = next(step for step in range(SHIFT, SHIFT + count) if np.gcd(step, count) == 1)
        self._order = (np.arange(count) * step % count).astype(np.int32)
        pages, k, v = random_pages(shape, count, rng)
        self.packed = (pages,)
        self._k, self._v = (stored[self._order].reshape(-1, *stored.shape[2:])[:CONTEXT] for stored in (k, v))

    def bind(self, rows: int) -> Bound:
        """The other operands at one M."""
        import tvm

        def tensor(array: Array) -> Any:
            return tvm.runtime.tensor(np.ascontiguousarray(array))

        def integers(*values: int) -> Any:
            return tensor(np.array(values, np.int32))

        q = tensor(self._q[:rows])
        y = tensor(np.full(self._q[:rows].shape, np.nan, self._q.dtype))
        log_sum = tensor(np.zeros(self._q.shape[:2], np.float32)[:rows])
        rotary = (0, 1.0, 1e4, self._scale)
        if self._spec.kernel == "prefill_ragged":
            ends, zeros = integers(0, rows), tensor(np.zeros(rows, np.int32))
            after = (ends, zeros, integers(0), y, log_sum, 1, *rotary)
            return Bound(lambda both: (q, ends, *both, *after), y)
        lengths = self._lengths(rows) if self._spec.kernel == "decode" else [CONTEXT]
        counts = [-(-length // PAGE_SIZE) for length in lengths]
        starts = np.cumsum([0, *counts]).astype(np.int32)
        owned = np.concatenate([self._order[: end - begin] for begin, end in pairwise(starts)])
        last = integers(*(n - PAGE_SIZE * (count - 1) for n, count in zip(lengths, counts, strict=True)))
        zeros = tensor(np.zeros(len(lengths), np.int32))
        history = (tensor(starts), tensor(owned), last, zeros)
        if self._spec.kernel == "decode":
            return Bound(lambda pages: (q, *pages, *history, zeros, y, log_sum, *rotary), y)
        ends, positions = integers(0, rows), tensor(np.arange(CONTEXT, CONTEXT + rows, dtype=np.int32))
        return Bound(lambda pages: (q, ends, *pages, *history, positions, y, log_sum, 0, *rotary), y)

    def error(self, y: Array) -> float:
        """The largest |y - expected|, less what rounding y to its type may do; NaN where y has one."""
        expected = self._expected(len(y))
        rounding = 2.0**-11 if y.dtype == np.float16 else 0.0
        off = np.abs(y.astype(np.float64) - expected) - rounding * np.abs(expected)
        return float(off.max())

    def _lengths(self, rows: int) -> list[int]:
        return [LENGTHS[row % len(LENGTHS)] for row in range(rows)]

    def _expected(self, rows: int) -> Array:
        if self._spec.kernel == "decode":
            each = [
                attend(self._q[i : i + 1], self._k[:n], self._v[:n])
                for i, n in enumerate(self._lengths(rows))
            ]
            return np.concatenate(each)
        causal = self._spec.kernel == "prefill_ragged"
        keys = rows if causal else CONTEXT
        return attend(self._q[:rows], self._k[:keys], self._v[:keys], causal=causal)


def attend(q: Array, k: Array, v: Array, *, causal: bool = False) -> Array:
    """Attention in float64 [n, heads, D]; where causal, query i sees the keys up to i."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.astype(np.float64).repeat(group, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k, optimize=True) * q.shape[2] ** -0.5
    if causal:
        scores = np.where(np.arange(len(k)) > np.arange(len(q))[:, None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    found: Array = np.einsum("hqk,khd->qhd", weights, v, optimize=True)
    return found


def random_pages(shape: AttentionShape, count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Pages, and the keys and values in them, float64 [count, PAGE_SIZE, kv_heads, D]; see ``AttentionShape``."""
    size = (count, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim)
    pages = np.zeros(size, shape.dtype)
    if shape.int8_pages:
        codes = rng.integers(-127, 128, size, dtype=np.int8)
        scales = (rng.random(size[:-1]) * 0.01 + 0.01).astype(np.float32)
    else:
        codes, scales = rng.standard_normal(size).astype(shape.dtype), np.ones(size[:-1], np.float32)
    keys, values = (
        (codes[:, half].astype(np.float64) * scales[:, half, ..., None]).transpose(0, 2, 1, 3)
        for half in (0, 1)
    )
    # Of keys, each feature's 16 tokens lie together.
    halves = (
        codes[:, 0].swapaxes(-1, -2).reshape(count, shape.kv_heads, -1),
        codes[:, 1].reshape(count, shape.kv_heads, -1),
    )
    blocks = np.stack(halves, axis=1)
    raw = blocks.view(np.uint8).reshape(-1, blocks.shape[-1] * blocks.itemsize)
    if shape.int8_pages:
        raw = np.concatenate([raw, scales.reshape(-1, PAGE_SIZE).view(np.uint8)], axis=1)
    pages.reshape(-1).view(np.uint8)[: raw.size] = raw.reshape(-1)
    return pages, keys, values
