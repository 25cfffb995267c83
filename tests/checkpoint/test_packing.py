"""awq_format and compressed_tensors: the bytes, and their inverses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_tvm.checkpoint import QuantizationScheme, TensorInfo
from awq_tvm.checkpoint.awq_format import AwqGemm, pack_nibbles, unpack_nibbles
from awq_tvm.checkpoint.base import PER_CHANNEL
from awq_tvm.checkpoint.compressed_tensors import PackQuantized, pack_bits, packed_width, unpack_bits
from awq_tvm.checkpoint.packed_format import WritableFormat, checked_scheme, exact_float16
from awq_tvm.errors import CheckpointError, UnsupportedError

from .tiny_models import assert_same, infos_of, random_weight

# Made with compressed-tensors 0.20.0: pack_to_int32 of the values 0, 1, ..., 31 modulo 2 ** bits.
LIBRARY_WORDS = {
    3: [-1996831096, -964101434, -87652102],
    5: [-1975416800, -978769863, -902792294, 951954249, -4469269],
}


def test_awq_word_is_autoawqs() -> None:
    # Nibbles from the low end hold the channels 0, 2, 4, 6, 1, 3, 5, 7.
    assert pack_nibbles(np.arange(8, dtype=np.uint8)[:, None]).tolist() == [[0x75316420]]
    assert pack_nibbles(np.full((8, 1), 15, np.uint8)).tolist() == [[-1]]


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 5), octets=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_awq_packing_is_the_plain_loop(rows: int, octets: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 16, (rows, octets * 8), dtype=np.uint8)
    words = pack_nibbles(values.T)
    for row in range(rows):
        for word in range(octets):
            expected = 0
            for place, channel in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                expected |= int(values[row, word * 8 + channel]) << (4 * place)
            assert int(words[row, word]) & 0xFFFFFFFF == expected
    np.testing.assert_array_equal(unpack_nibbles(words), values.T)


@pytest.mark.parametrize("bits", LIBRARY_WORDS)
def test_bit_packing_gives_the_librarys_words(bits: int) -> None:
    values = (np.arange(32) % (1 << bits)).astype(np.uint8)[None]
    assert pack_bits(values, bits).tolist() == [LIBRARY_WORDS[bits]]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8), rows=st.integers(0, 4), columns=st.integers(1, 70), seed=st.integers(0, 2**32 - 1)
)
def test_bit_packing_is_one_stream_a_row(bits: int, rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    words = pack_bits(values, bits)
    assert words.shape == (rows, packed_width(columns, bits))
    for row in range(rows):
        stream = sum((int(word) & 0xFFFFFFFF) << (32 * at) for at, word in enumerate(words[row]))
        assert stream == sum(int(value) << (bits * at) for at, value in enumerate(values[row]))
    np.testing.assert_array_equal(unpack_bits(words, bits, columns), values)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    zero_point=st.booleans(),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 3, 8, 32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_is_bit_exact(
    bits: int, zero_point: bool, rows: int, groups: int, group_size: int, seed: int
) -> None:
    scheme = QuantizationScheme(bits, group_size, zero_point, ("lm_head",))
    formats: list[WritableFormat] = [PackQuantized()]
    if bits == 4 and zero_point:
        formats.append(AwqGemm())
    for packed in formats:
        outputs = rows * 8 if packed.name == "awq" else rows
        weight = random_weight(
            (outputs, groups * group_size), bits, group_size, symmetric=not zero_point, seed=seed
        )
        arrays = packed.pack(weight, scheme)
        assert set(arrays) == set(packed.suffixes(scheme))
        assert packed.marker in arrays
        assert all(array.flags.c_contiguous for array in arrays.values())
        assert packed.check(infos_of(arrays), scheme) == weight.q.shape
        assert_same(packed.unpack(arrays, scheme), weight)
        assert packed.parse_scheme(packed.describe(scheme), "here") == scheme


AWQ_SCHEME = QuantizationScheme(4, 8)
AWQ_SECTION = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 8, "zero_point": True}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"version": "gemv"}, UnsupportedError, "'gemv' layout"),
        ({"version": "gemv_fast"}, UnsupportedError, "'gemv_fast' layout"),
        ({"version": "marlin"}, UnsupportedError, "'marlin' layout"),
        ({"bits": 3}, UnsupportedError, "of 3 bits"),
        ({"bits": 40}, CheckpointError, "bits is 40"),
        ({"group_size": 0}, CheckpointError, "group_size is 0"),
        ({"group_size": -1}, CheckpointError, "group_size is -1"),
        ({"zero_point": "yes"}, CheckpointError, "zero_point is 'yes'"),
        ({"modules_to_not_convert": "lm_head"}, CheckpointError, "modules not to convert is 'lm_head'"),
    ],
)
def test_awq_section_refuses(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    assert AwqGemm().parse_scheme(AWQ_SECTION, "here") == AWQ_SCHEME  # the good twin
    with pytest.raises(kind, match=message):
        AwqGemm().parse_scheme(AWQ_SECTION | change, "here")


def test_awq_section_by_its_older_names() -> None:
    old = {
        "w_bit": 4,
        "q_group_size": 8,
        "zero_point": True,
        "version": "GEMM",
        "modules_to_not_convert": None,
    }
    assert AwqGemm().parse_scheme(old, "here") == AWQ_SCHEME


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape", "message"),
    [
        ("qweight", "int32", (32,), "not a matrix"),
        ("qweight", "int64", (32, 2), "wrong dtype"),
        ("scales", "int32", (4, 16), "wrong dtype"),
        ("qweight", "int32", (32, 3), "do not fit each other"),
        ("qweight", "int32", (33, 2), "does not divide in_features 33"),
        ("qzeros", "int32", (5, 2), "do not fit each other"),
        ("scales", "float16", (3, 16), "do not fit each other"),
        ("scales", "float16", (4, 15), "not a multiple of 8"),
    ],
)
def test_awq_shapes_refused(suffix: str, dtype: str, shape: tuple[int, ...], message: str) -> None:
    infos = infos_of(AwqGemm().pack(random_weight((16, 32), 4, 8), AWQ_SCHEME))
    assert AwqGemm().check(infos, AWQ_SCHEME) == (16, 32)  # the good twin
    with pytest.raises(CheckpointError, match=message):
        AwqGemm().check(infos | {suffix: TensorInfo(dtype, shape, "", 0)}, AWQ_SCHEME)


def test_awq_pack_refuses_outputs_that_fill_no_word() -> None:
    with pytest.raises(CheckpointError, match="out_features 12 is not a multiple of 8"):
        AwqGemm().pack(random_weight((12, 32), 4, 8), AWQ_SCHEME)


@pytest.mark.parametrize("value", [0.0, -0.5, np.nan, np.inf])
def test_scales_that_make_no_sense_are_refused(value: float) -> None:
    weight = random_weight((16, 32), 4, 8)
    for packed, suffix in ((AwqGemm(), "scales"), (PackQuantized(), "weight_scale")):
        arrays = packed.pack(weight, AWQ_SCHEME)
        assert_same(packed.unpack(arrays, AWQ_SCHEME), weight)  # the good twin
        arrays[suffix] = arrays[suffix].copy()
        arrays[suffix][2, 3] = value
        with pytest.raises(CheckpointError, match="needed: finite and > 0"):
            packed.unpack(arrays, AWQ_SCHEME)


def test_scales_in_float32_are_read_where_exact() -> None:
    weight = random_weight((16, 32), 4, 8)
    arrays = AwqGemm().pack(weight, AWQ_SCHEME)
    wide = arrays["scales"].astype(np.float32)
    assert_same(AwqGemm().unpack(arrays | {"scales": wide}, AWQ_SCHEME), weight)
    with pytest.raises(CheckpointError, match="float16 rounds"):
        exact_float16(wide * np.float32(1.0001), "scales")


CT_SCHEME = QuantizationScheme(3, 8, True, ("lm_head",))


def ct_section(**weights: Any) -> dict[str, Any]:
    section = PackQuantized().describe(CT_SCHEME)
    section["config_groups"]["group_0"]["weights"] |= weights
    return section


@pytest.mark.parametrize(
    ("section", "kind", "message"),
    [
        ({"config_groups": {}}, CheckpointError, "no config_groups"),
        ({"config_groups": {"a": 3}}, CheckpointError, "no config_groups"),
        ({"config_groups": {"a": {"weights": None}}}, CheckpointError, "says nothing about weights"),
        (ct_section(num_bits=9), CheckpointError, "bits is 9"),
        (ct_section(group_size=None), CheckpointError, "group_size is None"),
        (ct_section(group_size=0), CheckpointError, "group_size is 0"),
        (ct_section(symmetric=3), CheckpointError, "zero_point is 3"),
        (ct_section(type="float"), UnsupportedError, "weights.type is 'float'"),
        (ct_section(strategy="tensor"), UnsupportedError, "weights.strategy is 'tensor'"),
        (ct_section(strategy="channel"), UnsupportedError, "weights.group_size is 8 by channel"),
        (ct_section(actorder="random"), UnsupportedError, "weights.actorder is 'random'"),
        (
            ct_section(actorder="group", strategy="channel", group_size=-1),
            UnsupportedError,
            "weights.actorder is 'group' by channel",
        ),
        (ct_section() | {"format": "int-quantized"}, UnsupportedError, "format is 'int-quantized'"),
    ],
)
def test_compressed_tensors_section_refuses(
    section: dict[str, Any], kind: type[Exception], message: str
) -> None:
    assert PackQuantized().parse_scheme(ct_section(), "here") == CT_SCHEME  # the good twin
    with pytest.raises(kind, match=message):
        PackQuantized().parse_scheme(section, "here")


def test_compressed_tensors_refuses_activations() -> None:
    section = ct_section()
    section["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(UnsupportedError, match="input_activations is not null"):
        PackQuantized().parse_scheme(section, "here")


def test_compressed_tensors_groups_have_schemes_of_their_own() -> None:
    """By exact name, by pattern, by class: the more exact wins; what is described is what is parsed."""
    eight, channel = QuantizationScheme(8, 32, False), QuantizationScheme(4, PER_CHANNEL)
    scheme = replace(
        CT_SCHEME,
        exceptions={
            "re:.*layers\\.(0|1)\\..*down_proj$": channel,
            "model.layers.1.mlp.down_proj": eight,
            "model.embed_tokens": eight,
        },
    )
    section = PackQuantized().describe(scheme)
    assert [len(group["targets"]) for group in section["config_groups"].values()] == [1, 1, 2]
    parsed = PackQuantized().parse_scheme(section, "here")
    assert parsed == scheme
    assert parsed.of("model.layers.0.mlp.down_proj") == channel
    assert parsed.of("model.layers.1.mlp.down_proj") == eight
    assert parsed.of("model.layers.2.mlp.down_proj") == parsed.of("lm_head") == scheme
    assert channel.width(96) == 96


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ("Linear", CheckpointError, "no list of targets"),
        ([3], CheckpointError, "no list of targets"),
        (["Embedding"], UnsupportedError, "the class 'Embedding' has a scheme of its own"),
        (["re:(a+)+b"], UnsupportedError, "simple regular expressions"),
        (["re:(a|a)*b"], UnsupportedError, "simple regular expressions"),
        (["re:a{1,9}"], UnsupportedError, "simple regular expressions"),
        (["re:(?=a)"], UnsupportedError, "simple regular expressions"),
        (["re:(.*)\\1"], UnsupportedError, "simple regular expressions"),
        (["re:.*.*.*.*x"], UnsupportedError, "simple regular expressions"),
        (["re:" + "a" * 600], UnsupportedError, "simple regular expressions"),
        (["re:(a"], UnsupportedError, "no regular expression"),
    ],
)
def test_compressed_tensors_targets_that_are_refused(
    targets: object, kind: type[Exception], message: str
) -> None:
    section = ct_section()
    section["config_groups"]["group_1"] = {
        "targets": ["re:model\\.layers\\.\\d+\\.mlp\\.[a-z_]+proj"],
        "weights": section["config_groups"]["group_0"]["weights"] | {"num_bits": 8},
    }
    good = PackQuantized().parse_scheme(section, "here")
    assert good.of("model.layers.11.mlp.up_proj").bits == 8  # the good twin
    section["config_groups"]["group_1"]["targets"] = targets
    with pytest.raises(kind, match=message):
        PackQuantized().parse_scheme(section, "here")


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape", "kind", "message"),
    [
        ("weight_packed", "int64", (10, 3), CheckpointError, "wrong dtype or rank"),
        ("weight_scale", "float16", (10,), CheckpointError, "wrong dtype or rank"),
        ("weight_packed", "int32", (10, 5), CheckpointError, "do not fit each other"),
        ("weight_packed", "int32", (10, 4), UnsupportedError, "before 0.20"),
        ("weight_scale", "float16", (10, 5), CheckpointError, "do not fit each other"),
        ("weight_zero_point", "int32", (2, 4), CheckpointError, "do not fit each other"),
        ("weight_shape", "int64", (3,), CheckpointError, "do not fit each other"),
    ],
)
def test_compressed_tensors_shapes_refused(
    suffix: str, dtype: str, shape: tuple[int, ...], kind: type[Exception], message: str
) -> None:
    infos = infos_of(PackQuantized().pack(random_weight((10, 32), 3, 8), CT_SCHEME))
    assert PackQuantized().check(infos, CT_SCHEME) == (10, 32)  # the good twin
    with pytest.raises(kind, match=message):
        PackQuantized().check(infos | {suffix: TensorInfo(dtype, shape, "", 0)}, CT_SCHEME)


def test_compressed_tensors_contradictions_refused() -> None:
    weight = random_weight((10, 32), 3, 8)
    arrays = PackQuantized().pack(weight, CT_SCHEME)
    with pytest.raises(CheckpointError, match=r"weight_shape contradicts"):
        PackQuantized().unpack(arrays | {"weight_shape": np.array([10, 31])}, CT_SCHEME)
    with pytest.raises(CheckpointError, match="symmetric scheme with zero points"):
        PackQuantized().pack(weight, QuantizationScheme(3, 8, zero_point=False))


def test_checked_scheme_refuses() -> None:
    assert checked_scheme(4, 8, True, ["a"], "here") == QuantizationScheme(4, 8, True, ("a",))
    for values in ((4, 8, 1, []), (4, 8, True, [1]), ("4", 8, True, [])):
        with pytest.raises(CheckpointError, match="makes no sense"):
            checked_scheme(*values, "here")
