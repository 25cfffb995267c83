from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from awq_tvm.checkpoint import Checkpoint, QuantizationScheme, TensorInfo
from awq_tvm.checkpoint.finite import first_nonfinite
from awq_tvm.errors import CheckpointError, UsageError

from .tiny_models import random_weight


@pytest.mark.parametrize("bits", [0, 1, 9, 4.0, True, "4"])
def test_scheme_refuses_bits(bits: Any) -> None:
    QuantizationScheme(4, 64)  # the good twin
    with pytest.raises(UsageError, match="2, 3, 4, 5, 6, 7, 8"):
        QuantizationScheme(bits, 64)


@pytest.mark.parametrize("group_size", [0, -2, 64.0, None])
def test_scheme_refuses_group_size(group_size: Any) -> None:
    with pytest.raises(UsageError, match="group_size is"):
        QuantizationScheme(4, group_size)


@pytest.mark.parametrize("bits", range(2, 9))
def test_dequantize_is_the_formula(bits: int) -> None:
    weight = random_weight((6, 32), bits, 8)
    expected = np.empty((6, 32))
    for n in range(6):
        for k in range(32):
            step = int(weight.q[n, k]) - int(weight.zeros[n, k // 8])
            expected[n, k] = step * float(weight.scales[n, k // 8])
    np.testing.assert_allclose(weight.dequantize(), expected, rtol=1e-6)
    assert weight.dequantize().dtype == np.float32
    assert (weight.out_features, weight.in_features) == (6, 32)


def spoiled_scale(value: float) -> np.ndarray:
    scales = random_weight((6, 32), 3, 8).scales.copy()
    scales[2, 1] = value
    return scales


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "bits is 9"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": 5}, "does not divide"),
        ({"group_size": 16}, "must both be"),
        ({"q": np.zeros((6, 32), np.int32)}, "q is int32"),
        ({"q": np.full((6, 32), 8, np.uint8)}, "q holds 8"),
        ({"zeros": np.full((6, 4), 8, np.uint8)}, "zeros holds 8"),
        ({"scales": np.ones((6, 4), np.float32)}, "scales is float32"),
        ({"scales": spoiled_scale(0.0)}, r"scales\[2, 1\] is 0.0"),
        ({"scales": spoiled_scale(-1.0)}, r"scales\[2, 1\] is -1.0"),
        ({"scales": spoiled_scale(np.nan)}, r"scales\[2, 1\] is nan"),
        ({"scales": spoiled_scale(np.inf)}, r"scales\[2, 1\] is inf"),
        ({"group_of": np.zeros(31, np.int32)}, r"groups are int32 \[31\]; needed: int32 \[32\]"),
        ({"group_of": np.zeros(32, np.int64)}, r"groups are int64 \[32\]"),
        ({"group_of": np.zeros(32, np.int32)}, "group 0 has 32 channels; needed: 8"),
        ({"group_of": np.arange(32, dtype=np.int32)}, "in group 0 or 31 of 4"),
        ({"group_of": np.arange(-1, 31, dtype=np.int32)}, "in group -1 or 30 of 4"),
    ],
)
def test_quantized_weight_refuses(change: dict[str, Any], message: str) -> None:
    good = random_weight((6, 32), 3, 8)
    with pytest.raises(CheckpointError, match=message):
        replace(good, **change)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_nonfinite(dtype: Any, value: float) -> None:
    values = (
        np.array([np.finfo(np.float16).max, 6e-8, -1.0, 0.0] * 6)
        .clip(-5e4, 5e4)
        .astype(dtype)
        .reshape(4, 2, 3)
    )
    assert first_nonfinite(values) is None
    values[2, 1, 0] = values[3, 0, 0] = value
    assert first_nonfinite(values) == (2, 1, 0)


def test_first_nonfinite_beyond_one_chunk() -> None:
    values = np.zeros(5_000_000, np.float16)
    values[4_999_998] = np.nan
    assert first_nonfinite(values) == (4_999_998,)
    assert first_nonfinite(np.arange(3)) is None
    assert first_nonfinite(np.zeros((0, 3), np.float32)) is None


def make_checkpoint(values: np.ndarray) -> Checkpoint:
    return Checkpoint(
        source="x",
        path=Path("x"),
        format="huggingface",
        config={},
        tensors={"a": TensorInfo("float32", values.shape, "F32", values.nbytes)},
        load_dense={"a": values}.__getitem__,
        load_side_files=lambda: {"tokenizer.json": b"{}"},
    )


def test_checkpoint_read() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    checkpoint = make_checkpoint(values)
    assert checkpoint.read("a") is values
    assert checkpoint.side_files == {"tokenizer.json": b"{}"}
    with pytest.raises(CheckpointError, match="no dense tensor 'b'"):
        checkpoint.read("b")
    with pytest.raises(CheckpointError, match="no quantized linear 'a'"):
        checkpoint.read_quantized("a")
    values[1, 2] = np.nan
    with pytest.raises(CheckpointError, match=r"a\[1, 2\] is nan"):
        checkpoint.read("a")
