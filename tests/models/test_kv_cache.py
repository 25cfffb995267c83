"""The cache as the runtime drives it, against attention in float64: lengths, batches, chunks, forks, windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache
from tvm_ffi import Shape

from awq_tvm.errors import UnsupportedError
from awq_tvm.models.kv_cache import create_kv_cache
from awq_tvm.models.rope import RopeConfig

Array = np.ndarray[Any, Any]
LAYERS = 2
BOUND = {"float32": 3e-6, "float16": 4e-3}
"""Largest absolute error of an output, the inputs being standard normal."""

CUDA = {
    "kind": "cuda",
    "arch": "sm_80",
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 49152,
    "host": "llvm",
}
METAL = {"kind": "metal", "max_shared_memory_per_block": 32 * 1024, "thread_warp_size": 32}


@dataclass(frozen=True)
class Case:
    """Sizes of a cache, and what the reference needs to know."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "float32"
    sliding_window: int | None = None
    cpu: str | None = None
    int8_pages: bool = False

    @property
    def rope(self) -> RopeConfig:
        return RopeConfig(self.head_dim, theta=1e4)

    @property
    def target(self) -> tvm.target.Target:
        return tvm.target.Target({"kind": "llvm"} | ({"mcpu": self.cpu} if self.cpu else {}))


class Attend(nn.Module):
    """Every layer attends with the same qkv; the last layer's output is returned."""

    def __init__(self, case: Case, target: tvm.target.Target) -> None:
        super().__init__()
        self.case, self.target = case, target

    def forward(self, qkv: nn.Tensor, kv_cache: PagedKVCache) -> Any:
        case, tokens = self.case, qkv.shape[0]
        qkv = nn.op.reshape(qkv, (1, tokens, case.heads + 2 * case.kv_heads, case.head_dim))
        for layer in range(LAYERS):
            out = kv_cache.attention_with_fused_qkv(layer, qkv, case.heads, case.head_dim**-0.5)
        return out, kv_cache

    def create(self) -> PagedKVCache:
        return create_kv_cache(
            max_batch_size=tirx.IntImm("int64", 4),
            max_total_seq_len=tirx.IntImm("int64", 1024),
            prefill_chunk_size=tirx.IntImm("int64", 256),
            page_size=tirx.IntImm("int64", 16),
            num_hidden_layers=LAYERS,
            num_attention_heads=self.case.heads,
            num_key_value_heads=self.case.kv_heads,
            head_dim=self.case.head_dim,
            rope=self.case.rope,
            dtype=self.case.dtype,
            target=self.target,
            sliding_window=self.case.sliding_window,
            int8_pages=self.case.int8_pages,
        )


def _export(case: Case, target: tvm.target.Target) -> tvm.IRModule:
    plain = {"param_mode": "none", "effect_mode": "none"}
    rows = (case.heads + 2 * case.kv_heads, case.head_dim)
    forward = {
        "qkv": spec.Tensor(["tokens", *rows], case.dtype),
        "kv_cache": spec.Object(object_type=PagedKVCache),
        "$": plain,
    }
    mod, _ = Attend(case, target).export_tvm({"forward": forward, "create": {"$": plain}})
    return mod


@cache
def _machine(case: Case) -> relax.VirtualMachine:
    return relax.VirtualMachine(tvm.compile(_export(case, case.target), case.target), tvm.cpu())


def _state(name: str, *arguments: Any) -> Any:
    return tvm.get_global_func(f"vm.builtin.{name}")(*arguments)


class Session:
    """A cache, the whole history of each of its sequences, and a check of every output against float64."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.machine = _machine(case)
        self.cache = self.machine["create"]()
        self.random = np.random.default_rng(7)
        self.history: dict[int, Array] = {}

    def add(self, sequence: int) -> None:
        _state("kv_state_add_sequence", self.cache, sequence)
        case = self.case
        self.history[sequence] = np.zeros((0, case.heads + 2 * case.kv_heads, case.head_dim), case.dtype)

    def fork(self, parent: int, child: int, position: int = -1) -> None:
        _state("kv_state_fork_sequence", self.cache, parent, child, position)
        history = self.history[parent]
        self.history[child] = history if position == -1 else history[:position]

    def pop(self, sequence: int, count: int) -> None:
        _state("kv_state_popn", self.cache, sequence, count)
        self.history[sequence] = self.history[sequence][: len(self.history[sequence]) - count]

    def forward(self, **lengths: int) -> Array:
        """Append random tokens, ``s0=5`` being five to sequence 0; returns the checked output."""
        counts = {int(name[1:]): count for name, count in lengths.items()}
        rows = self.history[next(iter(counts))].shape[1:]
        new = {s: self.random.standard_normal((n, *rows)).astype(self.case.dtype) for s, n in counts.items()}
        _state("kv_state_begin_forward", self.cache, Shape(list(counts)), Shape(list(counts.values())))
        stacked = np.concatenate(list(new.values()))
        out = self.machine["forward"](tvm.runtime.tensor(stacked), self.cache)[0].numpy()
        _state("kv_state_end_forward", self.cache)
        start = 0
        for sequence, count in counts.items():
            self.history[sequence] = np.concatenate([self.history[sequence], new[sequence]])
            # Tokens read together see one another as they came, a single one itself as the cache has it.
            kept = len(self.history[sequence]) - (0 if max(counts.values()) == 1 else count)
            stored = self.read_back(sequence, kept) if self.case.int8_pages else None
            expected = _attention(self.history[sequence], self.case, stored)[-count:]
            found = out[0, start : start + count].astype(np.float64)
            assert np.max(np.abs(found - expected)) < BOUND[self.case.dtype], (sequence, lengths)
            start += count
        return out

    def read_back(self, sequence: int, count: int) -> tuple[Array, Array]:
        """The last layer's first keys and values of a sequence, both [count, kv_heads, D]."""
        shape = (LAYERS, count, self.case.kv_heads, self.case.head_dim)
        k, v = (tvm.runtime.tensor(np.zeros(shape, self.case.dtype)) for _ in range(2))
        if count:
            _state("attention_kv_cache_debug_get_kv", self.cache, sequence, 0, count, k, v)
        return k.numpy()[-1], v.numpy()[-1]


def _attention(qkv: Array, case: Case, stored: tuple[Array, Array] | None = None) -> Array:
    """Causal attention of a whole sequence in float64, [n, heads, D].

    Keys and values that an int8 cache ``stored`` take the place of the first ones; they must be near those.
    """
    count, half = len(qkv), case.head_dim // 2
    wide = qkv.astype(np.float64)
    positions = np.arange(count, dtype=np.float32)
    angle = (positions[:, None] * case.rope.inverse_frequencies()).astype(np.float64)[:, None]
    cosine, sine = np.cos(angle), np.sin(angle)

    def rotate(x: Array) -> Array:
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)

    q = rotate(wide[:, : case.heads])
    k = rotate(wide[:, case.heads : case.heads + case.kv_heads])
    v = wide[:, case.heads + case.kv_heads :].copy()
    for exact, near in zip((k, v), stored or (), strict=stored is not None):
        step = np.abs(exact).max(axis=-1, keepdims=True)[: len(near)] / 127
        rounding = 1e-5 if case.dtype == "float32" else 2e-3 + 0.1 * step
        assert np.all(np.abs(exact[: len(near)] - near) <= step / 2 + rounding)
        exact[: len(near)] = near
    k, v = (x.repeat(case.heads // case.kv_heads, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * case.head_dim**-0.5
    distance = np.arange(count)[:, None] - np.arange(count)
    seen = (distance >= 0) & (distance < (case.sliding_window or count))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


SMALL = Case(6, 2, 16)
CASES = [
    SMALL,
    Case(9, 3, 64),
    Case(9, 3, 64, cpu="x86-64-v3"),
    Case(4, 4, 8),
    Case(7, 1, 80),
    Case(9, 1, 24),
    Case(4, 2, 128, "float16"),
]
INT8_CASES = [
    Case(6, 2, 16, int8_pages=True),
    Case(9, 3, 64, "float16", int8_pages=True),
    Case(9, 3, 64, cpu="x86-64-v3", int8_pages=True),
    Case(4, 4, 8, int8_pages=True),
    Case(9, 1, 24, int8_pages=True),
]
SMALL_INT8 = INT8_CASES[0]
EITHER = pytest.mark.parametrize("case", [SMALL, SMALL_INT8], ids=["float32", "int8"])


@pytest.mark.parametrize("case", CASES + INT8_CASES, ids=str)
def test_prefill_then_decode_at_odd_lengths(case: Case) -> None:
    """Lengths on both sides of a page, a vector and a tile; then a few tokens one at a time."""
    session = Session(case)
    for sequence, length in enumerate((1, 7, 16, 17, 33, 130)):
        name = f"s{sequence}"
        session.add(sequence)
        session.forward(**{name: length})
        for _ in range(3):
            session.forward(**{name: 1})
        _state("kv_state_remove_sequence", session.cache, sequence)
    assert _state("attention_kv_cache_empty", session.cache)


@pytest.mark.parametrize("case", [SMALL, Case(9, 3, 64), SMALL_INT8], ids=str)
def test_batches_of_different_lengths(case: Case) -> None:
    """Prefill together, decode together, and a mixture of both."""
    session = Session(case)
    for sequence in range(4):
        session.add(sequence)
    session.forward(s0=33, s1=1, s2=16, s3=130)
    session.forward(s0=1, s1=1, s2=1, s3=1)
    session.forward(s3=1, s1=1)
    session.forward(s0=1, s1=40, s2=1, s3=7)
    session.forward(s2=1, s0=1, s1=1, s3=1)


@EITHER
@pytest.mark.parametrize("chunks", [(1, 32, 17, 50), (16, 16, 68), (99, 1)])
def test_chunked_prefill_is_prefill(chunks: tuple[int, ...], case: Case) -> None:
    """Each chunk against the whole history, the chunks' boundaries on and off page boundaries."""
    session = Session(case)
    session.add(0)
    for length in chunks:
        session.forward(s0=length)


@EITHER
def test_long_history_is_split_and_merged(case: Case) -> None:
    """More keys than one split takes, and more splits than their limit would leave at 64 keys each."""
    session = Session(case)
    session.add(0)
    session.add(1)
    for _ in range(3):
        session.forward(s0=240)
    session.forward(s1=3)
    session.forward(s0=1, s1=1)
    session.forward(s0=1)


@EITHER
@pytest.mark.parametrize("position", [-1, 0, 16, 21, 40])
def test_forked_sequences_go_their_own_ways(position: int, case: Case) -> None:
    """A child shares its parent's tokens up to the fork; both continue, together and alone, and chunked."""
    session = Session(case)
    session.add(0)
    session.forward(s0=40)
    session.fork(0, 1, position)
    session.forward(s0=1, s1=1)
    session.forward(s1=20)
    session.forward(s0=5, s1=3)
    session.fork(1, 2)
    session.forward(s2=1, s0=1, s1=1)


@EITHER
@pytest.mark.parametrize("count", [0, 1, 3, 16, 39])
def test_popped_tokens_are_forgotten(count: int, case: Case) -> None:
    """Tokens after a pop take the places of the popped ones."""
    session = Session(case)
    session.add(0)
    session.forward(s0=40)
    session.pop(0, count)
    session.forward(s0=1)
    session.forward(s0=18)


@pytest.mark.parametrize(("window", "int8"), [(1, False), (16, False), (40, False), (17, True)])
def test_sliding_window(window: int, int8: bool) -> None:
    """A token, a page and more; in every kernel: ragged and paged prefill, decode, and across a fork."""
    session = Session(Case(6, 2, 16, sliding_window=window, int8_pages=int8))
    session.add(0)
    session.forward(s0=1)
    session.forward(s0=70)
    session.forward(s0=1)
    session.forward(s0=33)
    session.fork(0, 1, 32)
    session.forward(s0=1, s1=1)
    session.forward(s0=3, s1=30)


def test_large_scores_do_not_overflow() -> None:
    """Scores of some thousands, where a wrong starting maximum or a missing one would show."""
    session = Session(SMALL)
    session.add(0)
    rows = (SMALL.heads + 2 * SMALL.kv_heads, SMALL.head_dim)
    qkv = np.full((20, *rows), -60.0, np.float32)
    qkv[:, : SMALL.heads] = 60.0
    qkv[:, SMALL.heads + SMALL.kv_heads :] = np.arange(20, dtype=np.float32)[:, None, None]
    _state("kv_state_begin_forward", session.cache, Shape([0]), Shape([20]))
    out = session.machine["forward"](tvm.runtime.tensor(qkv), session.cache)[0].numpy()[0]
    expected = _attention(qkv, SMALL)
    assert np.max(np.abs(out - expected)) < 0.05
    assert np.min(expected) < 1e-6


def test_cached_keys_and_values_can_be_read_back() -> None:
    """The page layout is ours; what comes back is [layers, n, kv_heads, D], keys rotated, values as they came."""
    session = Session(SMALL)
    session.add(0)
    session.forward(s0=21)
    k, v = (
        tvm.runtime.tensor(np.zeros((LAYERS, 21, SMALL.kv_heads, SMALL.head_dim), "float32"))
        for _ in range(2)
    )
    _state("attention_kv_cache_debug_get_kv", session.cache, 0, 0, 21, k, v)
    history = session.history[0]
    keys = history[:, SMALL.heads : SMALL.heads + SMALL.kv_heads]
    for layer in range(LAYERS):
        np.testing.assert_array_equal(v.numpy()[layer], history[:, SMALL.heads + SMALL.kv_heads :])
        np.testing.assert_array_equal(k.numpy()[layer, 0], keys[0])
        lengths = np.linalg.norm(k.numpy()[layer], axis=-1)
        np.testing.assert_allclose(lengths, np.linalg.norm(keys, axis=-1), rtol=1e-5)
        assert np.max(np.abs(k.numpy()[layer, 20] - keys[20])) > 0.1


def _sources(module: Any) -> str:
    """Everything that a module and its imports can show of themselves."""
    own = ""
    for form in ("cuda", "metal", ""):
        try:
            own = module.inspect_source(form) or own
        except (RuntimeError, ValueError):
            continue
    return own + "".join(_sources(imported) for imported in module.imports)


@pytest.mark.parametrize(
    ("target", "kernel"),
    [(tvm.target.Target(CUDA), "cuda"), (tvm.target.Target("apple/m1-gpu", host="llvm"), "metal")],
    ids=["cuda", "metal"],
)
def test_gpu_kernels_compile(target: tvm.target.Target, kernel: str) -> None:
    """TVM's attention over many tokens, and our decoding and rotation, become device code, with no device at hand."""
    from tvm.s_tir import dlight

    mod = _export(Case(8, 2, 64, "float16"), target)
    with target:
        mod = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(mod)
    executable = tvm.compile(mod, target)
    device_code = _sources(executable.mod)
    assert "split_rotary" in device_code
    assert "attention_decode_paged" in device_code
    assert {"cuda": "__global__", "metal": "kernel void"}[kernel] in device_code


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(6, 4, 16), "cannot share"),
        (Case(6, 2, 12), "multiple of 8"),
        (Case(6, 2, 16, "float64"), "no attention in float64"),
        (Case(6, 2, 16, "bfloat16"), "bfloat16 has no CPU kernel"),
        (Case(6, 2, 16, sliding_window=0), "sees nothing"),
    ],
    ids=str,
)
def test_shapes_without_kernels_are_refused(case: Case, words: str) -> None:
    """The error names the size; the good twin builds."""
    _export(SMALL, SMALL.target)
    with pytest.raises(UnsupportedError, match=words):
        _export(case, case.target)


def _create(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "max_batch_size": 1,
        "max_total_seq_len": 64,
        "prefill_chunk_size": 64,
        "page_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope": RopeConfig(16),
        "dtype": "float32",
        "target": tvm.target.Target("llvm"),
    }

    class Creator(nn.Module):
        def create(self) -> PagedKVCache:
            return create_kv_cache(**(arguments | changes))

    Creator().export_tvm({"create": {"$": {"param_mode": "none", "effect_mode": "none"}}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope": RopeConfig(8)}, "8 of 16"),
        ({"page_size": 32}, "page of 32"),
        ({"page_size": tirx.IntImm("int64", 8)}, "page of 8"),
        ({"target": tvm.target.Target(CUDA), "sliding_window": 4}, "GPU"),
        ({"target": tvm.target.Target(METAL), "sliding_window": 4}, "16 in float32"),
        ({"target": tvm.target.Target(CUDA), "dtype": "float16", "int8_pages": True}, "int8 has no GPU"),
    ],
)
def test_caches_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    """A page, rotation or window that no kernel serves."""
    _create(**({"target": changes["target"], "dtype": "float16"} if "target" in changes else {}))
    with pytest.raises(UnsupportedError, match=words):
        _create(**changes)
