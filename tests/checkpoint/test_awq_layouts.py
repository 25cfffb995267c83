"""awq_gemv and awq_interleaved: AutoAWQ's other layouts and llm-awq's second one."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_tvm.checkpoint import QuantizationScheme, QuantizedWeight
from awq_tvm.checkpoint.awq_gemv import AwqGemv, zeros_width
from awq_tvm.checkpoint.awq_interleaved import (
    GEMV_FAST,
    LLM_AWQ,
    pack_interleaved,
    recover_zero_points,
    scaled_zero_points,
    unpack_interleaved,
)
from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.checkpoint.formats import format_of
from awq_tvm.checkpoint.packed_format import PackedFormat
from awq_tvm.errors import CheckpointError, UnsupportedError

from .tiny_models import assert_same, gemv_arrays, infos_of, random_weight

SCHEME = QuantizationScheme(4, 32, True, ("lm_head",))
SECTIONS: dict[str, tuple[PackedFormat, dict[str, Any]]] = {
    "awq-gemv": (AwqGemv(), {"version": "gemv"}),
    "awq-gemv-fast": (GEMV_FAST, {"version": "gemv_fast"}),
    "llm-awq": (LLM_AWQ, {"version": "gemv", "backend": "llm-awq"}),
}


def arrays_of(name: str, weight: QuantizedWeight, scheme: QuantizationScheme = SCHEME) -> dict[str, Any]:
    if name == "awq-gemv":
        return gemv_arrays(weight)
    return {"awq-gemv-fast": GEMV_FAST, "llm-awq": LLM_AWQ}[name].pack(weight, scheme)


@pytest.mark.parametrize(
    ("features", "group_size", "width"),  # computed with AutoAWQ 0.2.9, calculate_zeros_width
    [(256, 32, 4), (2048, 32, 8), (4096, 64, 8), (576, 64, 2), (11008, 128, 11), (4096, 4096, 1)],
)
def test_zeros_are_as_wide_as_autoawqs(features: int, group_size: int, width: int) -> None:
    assert zeros_width(features, group_size) == width


def test_interleaved_words_are_the_librarys() -> None:
    # Made with AutoAWQ 0.2.9, pack_intweight(interleave=4, kstride=64): every seventh word.
    rows, columns = np.arange(4)[:, None], np.arange(64)[None]
    values = ((5 * rows + 3 * columns + columns // 8) % 16).astype(np.uint8)
    words = pack_interleaved(values)
    assert words.shape == (1, 64)
    assert words[0, ::7].tolist() == [-19824, 2021, 6390, -2348, 2021, -6717, -2348, -11086, -6717, 14872]


@settings(max_examples=30, deadline=None)
@given(fours=st.integers(1, 4), tiles=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_interleaving_is_what_its_docstring_says(fours: int, tiles: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 16, (4 * fours, 64 * tiles), dtype=np.uint8)
    words = pack_interleaved(values)
    for n in range(values.shape[0]):
        for k in range(values.shape[1]):
            word = words[n // 4, k // 64 * 64 + 16 * (n % 4) + 8 * (k % 64 // 32) + k % 8]
            assert (int(word) & 0xFFFF) >> (4 * (k % 32 // 8)) & 15 == values[n, k]
    np.testing.assert_array_equal(unpack_interleaved(words), values)


@settings(max_examples=40, deadline=None)
@given(
    octets=st.integers(1, 3),
    shape=st.sampled_from([(64, 32), (320, 32), (576, 64), (384, 128), (1152, 128), (512, 512)]),
    name=st.sampled_from(list(SECTIONS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_come_back_exactly(octets: int, shape: tuple[int, int], name: str, seed: int) -> None:
    features, group_size = shape
    packed, section = SECTIONS[name]
    scheme = QuantizationScheme(4, group_size, True, ("lm_head",))
    weight = random_weight((octets * 8, features), 4, group_size, seed=seed)
    arrays = arrays_of(name, weight, scheme)
    assert set(arrays) == set(packed.suffixes(scheme))
    assert packed.check(infos_of(arrays), scheme) == weight.q.shape
    assert_same(packed.unpack(arrays, scheme), weight)
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "modules_to_not_convert": ["lm_head"],
    }
    assert format_of(config | section, "here") == packed or name == "awq-gemv"
    assert format_of(config | section, "here").name == name
    assert packed.parse_scheme(config | section, "here") == scheme


@pytest.mark.parametrize("packed", [LLM_AWQ, GEMV_FAST])
def test_what_is_described_is_understood(packed: Any) -> None:
    assert format_of(packed.describe(SCHEME), "here") is packed
    assert packed.parse_scheme(packed.describe(SCHEME), "here") == SCHEME


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]))
def test_zero_points_are_recovered_from_any_scale(seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    scales = (2.0 ** rng.uniform(-24, 11, (16, 8))).astype(dtype)  # down to float16's smallest
    zeros = rng.integers(0, 16, scales.shape, dtype=np.uint8)
    np.testing.assert_array_equal(recover_zero_points(scaled_zero_points(zeros, scales), scales), zeros)


@pytest.mark.parametrize("zero_point", [7.5, -1.0, 16.0, 7.01, np.nan, np.inf])
def test_zero_points_that_are_no_integers_are_refused(zero_point: float) -> None:
    weight = random_weight((8, 64), 4, 32)
    arrays = LLM_AWQ.pack(weight, SCHEME)
    assert_same(LLM_AWQ.unpack(arrays, SCHEME), weight)  # the good twin
    arrays["scaled_zeros"][1, 3] = -arrays["scales"][1, 3] * np.float16(zero_point)
    with pytest.raises(CheckpointError, match=r"not an integer from 0 to 15[\s\S]*\[1, 3\]"):
        LLM_AWQ.unpack(arrays, SCHEME)


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("value", [0.0, -0.5, np.nan, np.inf])
def test_scales_that_make_no_sense_are_refused(name: str, value: float) -> None:
    arrays = arrays_of(name, random_weight((8, 64), 4, 32))
    arrays["scales"][1, 1] = value
    with pytest.raises(CheckpointError, match="needed: finite and > 0"):
        SECTIONS[name][0].unpack(arrays, SCHEME)


def test_what_the_padding_holds_does_not_matter() -> None:
    weight = random_weight((8, 64), 4, 32)
    arrays = gemv_arrays(weight)
    arrays["qzeros"][:, 1:] = -1
    arrays["scales"][:, 2:] = np.nan
    assert_same(AwqGemv().unpack(arrays, SCHEME), weight)
    arrays = LLM_AWQ.pack(weight, SCHEME)
    arrays["scales"][2:], arrays["scaled_zeros"][2:] = np.nan, 1
    assert_same(LLM_AWQ.unpack(arrays, SCHEME), weight)


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"version": "marlin"}, UnsupportedError, "'marlin' layout"),
        ({"bits": 3}, UnsupportedError, "of 3 bits"),
        ({"group_size": 16}, UnsupportedError, "group_size is 16; the layout has 32, 64"),
        ({"group_size": 96}, UnsupportedError, "group_size is 96; the layout has 32, 64"),
        ({"group_size": 0}, CheckpointError, "group_size is 0"),
    ],
)
def test_sections_refused(name: str, change: dict[str, Any], kind: type[Exception], message: str) -> None:
    packed, section = SECTIONS[name]
    good = {"quant_method": "awq", "bits": 4, "group_size": 64} | section
    assert packed.parse_scheme(good, "here") == QuantizationScheme(4, 64)
    with pytest.raises(kind, match=message):
        packed.parse_scheme(good | change, "here")


@pytest.mark.parametrize(
    ("name", "suffix", "dtype", "shape", "message"),
    [
        ("awq-gemv", "qweight", "int32", (64,), "not a matrix"),
        ("awq-gemv", "qweight", "int16", (8, 8), "wrong dtype"),
        ("awq-gemv", "qweight", "int32", (8, 9), "does not divide in_features 72"),
        ("awq-gemv", "qzeros", "int32", (8, 1), "do not fit each other"),
        ("awq-gemv", "scales", "float16", (8, 2), "do not fit each other"),
        ("llm-awq", "qweight", "int16", (64,), "not a matrix"),
        ("llm-awq", "qweight", "int32", (2, 64), "wrong dtype"),
        ("llm-awq", "scaled_zeros", "float32", (32, 8), "wrong dtype"),
        ("llm-awq", "qweight", "int16", (1, 64), "out_features 4 is not a multiple of 8"),
        ("llm-awq", "qweight", "int16", (2, 96), "in_features 96 is not a multiple of 64"),
        ("llm-awq", "qweight", "int16", (2, 1088), "do not fit each other"),
        ("llm-awq", "scales", "float16", (2, 8), "do not fit each other"),
    ],
)
def test_shapes_refused(name: str, suffix: str, dtype: str, shape: tuple[int, ...], message: str) -> None:
    packed = SECTIONS[name][0]
    infos = infos_of(arrays_of(name, random_weight((8, 64), 4, 32)))
    assert packed.check(infos, SCHEME) == (8, 64)  # the good twin
    with pytest.raises(CheckpointError, match=message):
        packed.check(infos | {suffix: TensorInfo(dtype, shape, "", 0)}, SCHEME)


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    infos = infos_of(LLM_AWQ.pack(random_weight((8, 64), 4, 32), SCHEME))
    with pytest.raises(CheckpointError, match="group_size 128 does not divide in_features 64"):
        LLM_AWQ.check(infos, QuantizationScheme(4, 128))


def test_interleaved_pack_refuses() -> None:
    with pytest.raises(CheckpointError, match="out_features 12 is not a multiple of 8"):
        LLM_AWQ.pack(random_weight((12, 64), 4, 32), SCHEME)
    with pytest.raises(CheckpointError, match="in_features 96 is not a multiple of 64"):
        LLM_AWQ.pack(random_weight((8, 96), 4, 32), SCHEME)
    good = random_weight((8, 64), 4, 32)
    large = QuantizedWeight(good.q, good.scales * 0 + np.float16(60000), good.zeros | 2, 4, 32)
    with pytest.raises(CheckpointError, match="a scale is too large for this format"):
        LLM_AWQ.pack(large, SCHEME)
