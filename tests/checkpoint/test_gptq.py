"""gptq: the bytes as AutoGPTQ makes them, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_tvm.checkpoint import QuantizationScheme
from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.checkpoint.formats import format_of
from awq_tvm.checkpoint.gptq import Gptq
from awq_tvm.errors import CheckpointError, UnsupportedError

from .tiny_models import assert_same, gptq_arrays, infos_of, random_weight

# Made with AutoGPTQ 0.7.1, QuantLinear.pack, K = N = 32: column 1 of qweight, row 0 of qzeros, for
# q[n, k] = (5 k + 3 n) % 2 ** bits and zero points 1 + n % (2 ** bits - 1).
LIBRARY_WORDS = {
    2: ([-1819044973, -1819044973], [613566756, 1227133513]),
    3: ([1137079619, 1967375989, -965393466], [-786774392, 1796875096, 1754096452]),
    4: (
        [1640443267, -380656373, 1640443267, -380656373],
        [1985229328, 249346712, -2023406815, 284019625],
    ),
    8: (
        [302843907, 639704087, 976564267, 1313424447, 1650284627, 1987144807, -1970962309, -1634102129],
        [50462976, 117835012, 185207048, 252579084, 319951120, 387323156, 454695192, 522067228],
    ),
}


@pytest.mark.parametrize("bits", LIBRARY_WORDS)
def test_the_librarys_words_are_read(bits: int) -> None:
    column, row = LIBRARY_WORDS[bits]
    arrays = {
        "qweight": np.repeat(np.array(column, np.int32)[:, None], 32, 1),
        "qzeros": np.array([row], np.int32),
        "scales": np.full((1, 32), 0.5, np.float16),
    }
    scheme = QuantizationScheme(bits, 32)
    assert Gptq().check(infos_of(arrays), scheme) == (32, 32)
    weight = Gptq().unpack(arrays, scheme)
    np.testing.assert_array_equal(weight.q[7], (5 * np.arange(32) + 3) % (1 << bits))
    np.testing.assert_array_equal(weight.zeros[:, 0], 1 + np.arange(32) % ((1 << bits) - 1))


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    version=st.sampled_from(["gptq", "gptq_v2"]),
    symmetric=st.booleans(),
    group_size=st.sampled_from([16, 32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_come_back_exactly(
    bits: int, version: str, symmetric: bool, group_size: int, seed: int
) -> None:
    offset = 1 if version == "gptq" else 0
    weight = random_weight((64, 96), bits, group_size, symmetric=symmetric, seed=seed)
    weight.zeros[...] = np.maximum(weight.zeros, offset)
    section = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric}
    packed = format_of(section | {"checkpoint_format": version}, "here")
    assert packed == Gptq(offset)
    scheme = packed.parse_scheme(section, "here")
    assert scheme == QuantizationScheme(bits, group_size, not symmetric, ("lm_head",))
    arrays = gptq_arrays(weight, offset)
    assert packed.check(infos_of(arrays), scheme) == (64, 96)
    assert_same(packed.unpack(arrays, scheme), weight)


def test_a_zero_point_that_readers_disagree_on_is_refused() -> None:
    weight = random_weight((32, 64), 4, 32)
    weight.zeros[...] = 15
    arrays = gptq_arrays(weight, 0)
    scheme = QuantizationScheme(4, 32)
    assert_same(Gptq(0).unpack(arrays, scheme), weight)  # the good twin
    with pytest.raises(UnsupportedError, match="15 is stored minus one"):
        Gptq(1).unpack(arrays, scheme)


def test_symmetric_files_of_the_other_version_are_found_out() -> None:
    weight = random_weight((32, 64), 4, 32, symmetric=True)
    scheme = QuantizationScheme(4, 32, zero_point=False)
    assert_same(Gptq(1).unpack(gptq_arrays(weight, 1), scheme), weight)  # the good twin
    for offset in (0, 1):
        with pytest.raises(CheckpointError, match="each must be 8; found"):
            Gptq(offset).unpack(gptq_arrays(weight, 1 - offset), scheme)


def test_scales_that_make_no_sense_are_refused() -> None:
    arrays = gptq_arrays(random_weight((32, 64), 4, 32), 0)
    arrays["scales"][1, 2] = np.nan
    with pytest.raises(CheckpointError, match=r"scales\[2, 1\] is nan"):
        Gptq(0).unpack(arrays, QuantizationScheme(4, 32))


SECTION = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "desc_act": False}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"checkpoint_format": "marlin"}, UnsupportedError, "'marlin' layout"),
        ({"format": "gptq_p"}, UnsupportedError, "'gptq_p' layout"),
        ({"checkpoint_format": ["gptq"]}, UnsupportedError, "layout"),
        ({"is_marlin_format": True}, UnsupportedError, "'marlin' layout"),
        ({"pack_dtype": "int16"}, UnsupportedError, "pack_dtype is 'int16'"),
        ({"bits": 5}, UnsupportedError, "bits is 5"),
        ({"group_size": -1}, UnsupportedError, "one scale a row"),
        ({"dynamic": {"x": {"bits": 8}}}, UnsupportedError, "schemes of their own"),
        ({"bits": 9}, CheckpointError, "bits is 9"),
        ({"bits": None}, CheckpointError, "bits is None"),
        ({"group_size": 0}, CheckpointError, "group_size is 0"),
        ({"sym": "no"}, CheckpointError, "zero_point is 'no'"),
    ],
)
def test_sections_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    assert Gptq.of(SECTION, "here").parse_scheme(SECTION, "here").bits == 4  # the good twin
    with pytest.raises(kind, match=message):
        Gptq.of(SECTION | change, "here").parse_scheme(SECTION | change, "here")


def test_the_section_says_whether_the_head_is_quantized_and_the_order_needed() -> None:
    scheme = QuantizationScheme(4, 128)
    assert Gptq.of(SECTION, "here").parse_scheme(SECTION | {"lm_head": True}, "here") == scheme
    assert "g_idx" not in Gptq.of(SECTION, "here").suffixes(scheme)
    assert "g_idx" in Gptq.of(SECTION | {"desc_act": True}, "here").suffixes(scheme)


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape", "message"),
    [
        ("qweight", "int32", (8,), "not a matrix"),
        ("qweight", "int64", (8, 32), "wrong dtype"),
        ("qzeros", "int16", (2, 4), "wrong dtype"),
        ("scales", "int32", (2, 32), "wrong dtype"),
        ("qweight", "int32", (9, 32), "do not fit each other"),
        ("qzeros", "int32", (2, 5), "do not fit each other"),
        ("scales", "float16", (3, 32), "do not fit each other"),
        ("scales", "float16", (2, 33), "do not fit each other"),
    ],
)
def test_shapes_refused(suffix: str, dtype: str, shape: tuple[int, ...], message: str) -> None:
    scheme = QuantizationScheme(4, 32)
    infos = infos_of(gptq_arrays(random_weight((32, 64), 4, 32), 0))
    assert Gptq().check(infos, scheme) == (32, 64)  # the good twin
    with pytest.raises(CheckpointError, match=message):
        Gptq().check(infos | {suffix: TensorInfo(dtype, shape, "", 0)}, scheme)
