"""Attention of many new tokens in the emulator, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.schedules.attention.shape import AttentionShape
from tests.support.gpu_attention import BOUND, attend, fill_pages
from tests.support.gpu_kernels import Emulated

Array = np.ndarray[Any, Any]
NOTHING = np.float32(-1e30)
SUM_BOUND = 3e-6
"""Largest absolute error of a log-sum."""

# Alone, uneven, on both sides of tiles and pages, and none at all.
BATCHES = ((1,), (5, 0, 64, 1, 16), (77,), (33, 130, 15))
CACHED = ((17,), (0, 9, 64, 1, 95), (48,), (0, 31, 150))
UNEVEN = slice(1, 2)
"""The one of them to run where there is no time for all."""


def check_ragged(kernels: Emulated, host: HostPart, shape: AttentionShape, which: slice) -> None:
    """New tokens attend to one another, in some of ``BATCHES``; without a window to all of them, too."""
    for lengths in BATCHES[which]:
        error, sum_error = run_ragged(kernels, host, shape, lengths)
        assert error < BOUND[shape.dtype], lengths
        assert sum_error < SUM_BOUND, lengths
    if shape.sliding_window is None:
        assert run_ragged(kernels, host, shape, (2, 70), causal=False)[0] < BOUND[shape.dtype]


def check_paged(kernels: Emulated, host: HostPart, shape: AttentionShape, which: slice) -> None:
    """New tokens attend to pages, in some of ``BATCHES``; forks too where a window tells their positions apart."""
    for lengths, cached in list(zip(BATCHES, CACHED, strict=True))[which]:
        for forked in (False, True) if shape.sliding_window else (False,):
            error, sum_error = run_paged(kernels, host, shape, lengths, cached, forked)
            assert error < BOUND[shape.dtype], (lengths, cached)
            assert sum_error < SUM_BOUND, (lengths, cached)


def run_ragged(
    kernels: Emulated, host: HostPart, shape: AttentionShape, lengths: Sequence[int], causal: bool = True
) -> tuple[float, float]:
    """The largest errors of outputs and log-sums of prompts that have nothing in the cache."""
    random = np.random.default_rng(len(lengths))
    total, starts = sum(lengths), np.cumsum([0, *lengths]).astype(np.int32)
    kv = random.standard_normal((2, total, shape.kv_heads, shape.head_dim)).astype(shape.dtype)
    zeros = np.zeros(max(total, len(lengths)), np.int32)
    arrays = {
        **{"k": kv[0], "v": kv[1], "q_indptr": starts, "k_indptr": starts},
        **{"q_position": zeros[:total], "key_position": zeros[: len(lengths)]},
    }
    q, found, log_sum = _launch(
        kernels, host, shape, total, arrays, {"batch": len(lengths), "keys": total, "causal": int(causal)}
    )
    worst = (0.0, 0.0)
    for begin, length in zip(starts, lengths, strict=False):
        for token in range(length):
            low = max(0, token + 1 - shape.sliding_window) if shape.sliding_window else 0
            seen = slice(begin + low, begin + (token + 1 if causal else length))
            at = begin + token
            worst = _worse(worst, q[at], kv[0][seen], kv[1][seen], found[at], log_sum[at])
    return worst


def run_paged(
    kernels: Emulated,
    host: HostPart,
    shape: AttentionShape,
    lengths: Sequence[int],
    cached: Sequence[int],
    forked: bool = False,
) -> tuple[float, float]:
    """The same of new tokens against what is cached of their sequences; of forks, whose positions do not ascend."""
    random = np.random.default_rng(len(lengths))
    total, starts = sum(lengths), np.cumsum([0, *lengths]).astype(np.int32)
    paged = fill_pages(shape, cached, random)
    positions = [
        paged.arrays["key_position"][s] + cached[s] + (np.arange(n)[::-1] if forked else np.arange(n))
        for s, n in enumerate(lengths)
    ]
    arrays = paged.arrays | {"q_indptr": starts, "q_position": np.concatenate(positions).astype(np.int32)}
    sizes = {"num_pages": len(paged.arrays["pages"]), "nnz_pages": len(paged.arrays["page_values"])}
    q, found, log_sum = _launch(
        kernels, host, shape, total, arrays, {"batch": len(lengths), "causal": 0, **sizes}
    )
    worst = (0.0, 0.0)
    for sequence, begin in enumerate(starts[:-1]):
        for token in range(lengths[sequence]):
            own = positions[sequence][token] - paged.arrays["key_position"][sequence]
            low = max(0, own + 1 - shape.sliding_window) if shape.sliding_window else 0
            k, v = paged.keys[sequence][low:], paged.values[sequence][low:]
            worst = _worse(worst, q[begin + token], k, v, found[begin + token], log_sum[begin + token])
    return worst


def _launch(
    kernels: Emulated,
    host: HostPart,
    shape: AttentionShape,
    total: int,
    arrays: dict[str, Array],
    sizes: dict[str, int],
) -> tuple[Array, Array, Array]:
    q = np.random.default_rng(total).standard_normal((total, shape.heads, shape.head_dim)).astype(shape.dtype)
    guarded = np.full((total + 2, *q.shape[1:]), 7, shape.dtype)
    log_sum = np.full((total, shape.heads), np.nan, np.float32)
    arrays = arrays | {"q": q, "output": guarded[1:-1], "log_sum": log_sum}
    values: dict[str, int | float] = {"total": total, "softmax_scale": shape.head_dim**-0.5, **sizes}
    values |= {f"{name}_offset": 0 for name in arrays}
    (launch,) = host.launches(values)
    kernels.launch([launch], arrays)
    assert (guarded[[0, -1]] == 7).all()
    return q, guarded[1:-1].astype(np.float64), log_sum


def _worse(
    worst: tuple[float, float], q: Array, k: Array, v: Array, found: Array, log_sum: Array
) -> tuple[float, float]:
    if not len(k):
        assert (found == 0).all()
        assert (log_sum == NOTHING).all()
        return worst
    expected, expected_sum = attend(q, k, v)
    errors = float(np.abs(found - expected).max()), float(np.abs(log_sum - expected_sum).max())
    assert not np.isnan(errors).any()
    return max(worst[0], errors[0]), max(worst[1], errors[1])
