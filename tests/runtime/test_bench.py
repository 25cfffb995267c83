from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.errors import BundleError, UsageError
from awq_tvm.memory import peak_memory
from awq_tvm.runtime.bench import MAX_REPETITIONS, BenchOptions, bench_bundle
from awq_tvm.runtime.bench_worker import measure
from tests.bundle.conftest import make_bundle

from .bigram import Bigram


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_tokens": (0,)}, "found 0, legal is from 1"),
        ({"generate_tokens": -1}, "found -1, legal is from 0"),
        ({"threads": (1, 2000)}, "found 2000, legal is from 1 to 1024"),
        ({"repetitions": 0}, f"found 0, legal is from 1 to {MAX_REPETITIONS}"),
        ({"threads": ()}, "found 0 thread counts"),
        ({"prompt_tokens": (), "generate_tokens": 0}, "and 0 tests"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    BenchOptions()
    with pytest.raises(UsageError, match=message):
        BenchOptions(**options)


def test_rows_of_a_model() -> None:
    model = Bigram(np.eye(8, dtype=np.float32))
    rows = measure(model, prompt_tokens=[4, 16], generate_tokens=5, repetitions=3, vocab_size=8, chunk=8)
    assert [row["test"] for row in rows] == ["pp4", "pp16", "tg5"]
    assert model.sequences == {}
    for row, tokens, passes in zip(rows, (4, 16, 5), (1, 2, 5), strict=True):
        seconds = tokens / row["tokens_per_second"]
        assert row["gigabytes_per_second"] == pytest.approx(model.weight_bytes * passes / seconds / 1e9)
        assert row["spread"] >= 0


def test_peak_memory_is_in_bytes() -> None:
    assert 1 << 20 < peak_memory() < 1 << 40


def test_test_longer_than_the_context(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="it needs 33 tokens, the context holds 32"):
        bench_bundle(path, BenchOptions(prompt_tokens=(33,), generate_tokens=0))
    with pytest.raises(UsageError, match="it needs 33 tokens, the context holds 32"):
        bench_bundle(path, BenchOptions(prompt_tokens=(), generate_tokens=32))


def test_damaged_bundle(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "model.so").unlink()
    with pytest.raises(BundleError, match="missing"):
        bench_bundle(path, BenchOptions(prompt_tokens=(4,)))


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="needs the TVM runtime")
def test_library_that_cannot_be_loaded_is_an_error_of_the_parent(tmp_path: Path) -> None:
    # The hashes hold, so only loading it shows that this library is none.
    path = make_bundle(tmp_path / "b")
    options = BenchOptions(prompt_tokens=(4,), generate_tokens=0, threads=(1,))
    with pytest.raises(BundleError, match="library cannot be loaded"):
        bench_bundle(path, options)
