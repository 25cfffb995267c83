"""Paged attention of GPUs in the emulator, over pages in no order, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from tests.support.gpu_kernels import Emulated

Array = np.ndarray[Any, Any]
BOUND = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest absolute error of an output, the inputs being standard normal."""


@dataclass(frozen=True)
class Paged:
    """Sequences in pages, [pages, 2, kv_heads, PAGE_SIZE, head_dim]; whatever no sequence owns is NaN.

    Attributes:
        arrays: what the kernels take, by name.
        keys: of each sequence, [length, kv_heads, head_dim].
        values: the same.
    """

    arrays: dict[str, Array]
    keys: list[Array]
    values: list[Array]


def fill_pages(shape: AttentionShape, lengths: Sequence[int], random: np.random.Generator) -> Paged:
    """Random keys and values of so many tokens a sequence, in pages that lie in no order."""
    counts = [-(-length // PAGE_SIZE) for length in lengths]
    starts = np.cumsum([0, *counts]).astype(np.int32)
    order = random.permutation(int(starts[-1]) + 2).astype(np.int32)[: int(starts[-1])]
    extents = (int(starts[-1]) + 2, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim)
    pages = np.full(extents, np.nan, shape.dtype)
    keys, values = [], []
    for (begin, end), length in zip(pairwise(starts), lengths, strict=True):
        both = random.standard_normal((2, length, shape.kv_heads, shape.head_dim)).astype(shape.dtype)
        for token in range(length):
            page = order[begin:end][token // PAGE_SIZE]
            pages[page, :, :, token % PAGE_SIZE] = both[:, token]
        keys.append(both[0])
        values.append(both[1])
    last = np.array([length - PAGE_SIZE * (count - 1) for length, count in zip(lengths, counts, strict=True)])
    arrays = {
        "pages": pages,
        "page_indptr": starts,
        "page_values": order if len(order) else np.zeros(1, np.int32),
        "last_page_length": last.astype(np.int32),
        "key_position": random.integers(0, 50, len(lengths)).astype(np.int32),
    }
    return Paged(arrays, keys, values)


def attend(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """One query's attention in float64: [heads, D], and log2 of the sum of its weights."""
    group = q.shape[0] // k.shape[1]
    k, v = (x.astype(np.float64).repeat(group, axis=1) for x in (k, v))
    scores = np.einsum("hd,khd->hk", q.astype(np.float64), k) * q.shape[1] ** -0.5 * np.log2(np.e)
    highest = scores.max(axis=1, keepdims=True)
    weights = 2.0 ** (scores - highest)
    total = weights.sum(axis=1, keepdims=True)
    return np.einsum("hk,khd->hd", weights / total, v), (highest + np.log2(total))[:, 0]


def run_decode(
    kernels: Emulated, host: HostPart, shape: AttentionShape, lengths: Sequence[int], seed: int = 1
) -> tuple[float, float]:
    """The largest errors of the outputs and of their log-sums, one token a sequence."""
    random = np.random.default_rng(seed)
    paged = fill_pages(shape, lengths, random)
    batch = len(lengths)
    q = random.standard_normal((batch, shape.heads, shape.head_dim)).astype(shape.dtype)
    guarded = np.full((batch + 2, *q.shape[1:]), 7, shape.dtype)
    arrays = paged.arrays | {
        "q": q,
        "q_position": paged.arrays["key_position"] + np.array(lengths, np.int32) - 1,
        "output": guarded[1:-1],
        "log_sum": np.full((batch, shape.heads), np.nan, np.float32),
    }
    arrays |= {name: np.full(size // 4, np.nan, np.float32) for name, size in host.workspaces.items()}
    values: dict[str, int | float] = {"batch": batch, "softmax_scale": shape.head_dim**-0.5}
    values |= {"num_pages": len(paged.arrays["pages"]), "nnz_pages": len(paged.arrays["page_values"])}
    values |= {f"{name}_offset": 0 for name in arrays}
    kernels.launch(host.launches(values), arrays)
    assert (guarded[[0, -1]] == 7).all()
    error = sum_error = 0.0
    for row, length in enumerate(lengths):
        found, log_sum = arrays["output"][row].astype(np.float64), arrays["log_sum"][row]
        first = max(0, length - shape.sliding_window) if shape.sliding_window else 0
        if length == 0:
            assert (found == 0).all()
            assert (log_sum == np.float32(-1e30)).all()
            continue
        expected, expected_sum = attend(q[row], paged.keys[row][first:], paged.values[row][first:])
        error = max(error, float(np.abs(found - expected).max()))
        sum_error = max(sum_error, float(np.abs(log_sum - expected_sum).max()))
        assert not np.isnan(found).any()
        assert not np.isnan(log_sum).any()
    return error, sum_error
