"""Attention on ARM: cross-compiled, run by qemu as the CPU it is for, against float64 over what the cache holds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from awq_tvm.schedules.attention import decode, pages, prefill
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape, default_config
from awq_tvm.targets import resolve
from tests.support import emulated_arm

Array = np.ndarray[Any, Any]
# On both sides of a page, in pages that lie in no order.
LENGTHS, ORDER = (37, 5, 16), [4, 0, 6, 2, 5]
BOUND = {"float32": 3e-6, "float16": 4e-3}


def stored(cache: Array, shape: AttentionShape) -> tuple[Array, Array]:
    """What the pages hold, as float64 [page * PAGE_SIZE + token, kv_heads, D]: keys and values."""
    numbers = PAGE_SIZE * shape.head_dim
    itemsize = np.dtype(shape.page_dtype).itemsize
    flat = cache.reshape(-1).view(np.uint8)
    count = cache.shape[0] * 2 * shape.kv_heads
    blocks = flat[: count * shape.block * itemsize].reshape(count, -1)
    codes = blocks[:, : numbers * itemsize].copy().view(shape.page_dtype).astype(np.float64)
    scales = np.ones((count, PAGE_SIZE))
    if shape.int8_pages:
        scales = blocks[:, numbers:].copy().view(np.float32).astype(np.float64)
    halves = codes.reshape(-1, 2, shape.kv_heads, numbers), scales.reshape(-1, 2, shape.kv_heads, PAGE_SIZE)
    keys = halves[0][:, 0].reshape(-1, shape.kv_heads, shape.head_dim, PAGE_SIZE).transpose(0, 3, 1, 2)
    values = halves[0][:, 1].reshape(-1, shape.kv_heads, PAGE_SIZE, shape.head_dim).transpose(0, 2, 1, 3)
    both = [
        codes_of * halves[1][:, half].transpose(0, 2, 1)[..., None]
        for half, codes_of in enumerate((keys, values))
    ]
    rows = (cache.shape[0] * PAGE_SIZE, shape.kv_heads, shape.head_dim)
    return both[0].reshape(rows), both[1].reshape(rows)


def attend(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """Attention in float64, [n, heads, D]; where causal, the last query sees all keys."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.astype(np.float64).repeat(group, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) * q.shape[2] ** -0.5
    if causal:
        ahead = np.arange(len(k)) > np.arange(len(q))[:, None] + len(k) - len(q)
        scores = np.where(ahead, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


@emulated_arm.needs_qemu
@pytest.mark.parametrize(
    ("target_name", "cpu", "dtype", "int8"),
    [
        ("raspberry-pi-4", "cortex-a72", "float32", False),
        ("raspberry-pi-4", "cortex-a72", "float32", True),
        ("raspberry-pi-5", "cortex-a76", "float16", False),
        ("graviton-3", "max", "float16", True),
    ],
)
def test_append_decode_and_prefill(
    target_name: str, cpu: str, dtype: str, int8: bool, tmp_path: Path
) -> None:
    target = tvm.target.Target(resolve(target_name).tvm_target)
    shape = AttentionShape(6, 2, 24, dtype, int8_pages=int8)
    kernels = {
        "append": pages.append(shape),
        "decode": decode.decode_paged(shape, default_config("decode", shape, target)),
        "paged": prefill.prefill_paged(shape, default_config("prefill_paged", shape, target)),
        "ragged": prefill.prefill_ragged(shape, default_config("prefill_ragged", shape, target)),
    }
    mod = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in kernels.items()})
    library = tmp_path / "attention.so"
    emulated_arm.link(tvm.compile(mod, target=target), library)
    caller = emulated_arm.build_caller(tmp_path)
    random = np.random.default_rng(5)

    def normal(*extents: int) -> Array:
        return random.standard_normal(extents).astype(dtype)

    def call(name: str, *arguments: Any) -> list[Array]:
        return emulated_arm.call(caller, cpu, library, name, arguments)

    def near(found: Array, expected: Array) -> bool:
        return bool(np.abs(found.astype(np.float64) - expected).max() < BOUND[dtype])

    # Every sequence's tokens go to its pages.
    counts = [-(-length // PAGE_SIZE) for length in LENGTHS]
    starts = np.cumsum([0, *counts])
    owned = [ORDER[begin:end] for begin, end in pairwise(starts)]
    slots = [
        np.array([own[t // PAGE_SIZE] * PAGE_SIZE + t % PAGE_SIZE for t in range(length)], np.int32)
        for own, length in zip(owned, LENGTHS, strict=True)
    ]
    total = sum(LENGTHS)
    k, v = normal(total, 2, 24), normal(total, 2, 24)
    empty = np.full((7, 2, 2, PAGE_SIZE, 24), np.nan, dtype)
    cache = call("append", empty, k, v, np.concatenate(slots))[0]
    keys, values = stored(cache, shape)
    for exact, kept in ((k, keys), (v, values)):
        step = np.abs(exact.astype(np.float64)).max(axis=-1, keepdims=True) / 127
        limit = step * 0.501 if int8 else np.zeros_like(step)
        assert np.all(np.abs(exact - kept[np.concatenate(slots)]) <= limit)

    last = np.array([length - PAGE_SIZE * (count - 1) for length, count in zip(LENGTHS, counts, strict=True)])
    zeros = np.zeros(len(LENGTHS), np.int32)
    history = [cache, starts.astype(np.int32), np.array(ORDER, np.int32), last.astype(np.int32), zeros]
    rotary = (0, 1.0, 1e4, 24**-0.5)
    q = normal(len(LENGTHS), 6, 24)
    sums = np.zeros(q.shape[:2], np.float32)
    found = call("decode", q, *history, zeros, np.zeros_like(q), sums, *rotary)[-2]
    for row, own in enumerate(slots):
        assert near(found[row : row + 1], attend(q[row : row + 1], keys[own], values[own], causal=False))

    news = (9, 1, 30)
    indptr = np.cumsum([0, *news]).astype(np.int32)
    q, k, v = normal(sum(news), 6, 24), normal(sum(news), 2, 24), normal(sum(news), 2, 24)
    positions, sums = np.zeros(sum(news), np.int32), np.zeros(q.shape[:2], np.float32)
    paged = call("paged", q, indptr, *history, positions, np.zeros_like(q), sums, 0, *rotary)[-2]
    ragged = call("ragged", q, indptr, k, v, indptr, positions, zeros, np.zeros_like(q), sums, 1, *rotary)[-2]
    for row, own in enumerate(slots):
        new = slice(indptr[row], indptr[row + 1])
        assert near(paged[new], attend(q[new], keys[own], values[own], causal=False))
        assert near(ragged[new], attend(q[new], k[new], v[new], causal=True))
