"""Numbers of every kind survive quantization, and are as near as the step allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_tvm.checkpoint import PER_CHANNEL
from awq_tvm.errors import UsageError
from awq_tvm.quantize import group_quantize
from awq_tvm.quantize.group_quantize import (
    Rounding,
    choose_group_size,
    quantize,
    round_trip,
)

ALL_ROUNDINGS = [
    Rounding(bits, size, symmetric)
    for bits in range(2, 9)
    for size in (32, 64, 128, PER_CHANNEL)
    for symmetric in (False, True)
]


def _finite(quantized):
    return bool(torch.isfinite(quantized.scales).all()) and bool((quantized.scales > 0).all())


@pytest.mark.parametrize("rounding", ALL_ROUNDINGS, ids=str)
def test_error_is_at_most_half_a_step(rounding):
    weight = torch.randn(12, 256, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, rounding)
    width = rounding.width(256)
    assert quantized.scales.shape == (12, 256 // width)
    assert int(quantized.q.max()) <= rounding.levels
    step = quantized.scales.float().repeat_interleave(width, dim=1)
    error = (quantized.dequantize() - weight).abs()
    # The zero point is rounded too: an end of the range can be half a step beyond the last level. float16
    # rounding of the step adds levels * 2^-11 of a step at most.
    assert float((error / step).max()) <= 1.0 + rounding.levels * 2.0**-11
    inside = (quantized.q > 0) & (quantized.q < rounding.levels)
    assert float((error / step)[inside].max()) <= 0.5 + 1e-4


def test_dequantize_is_the_formula():
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    quantized = quantize(weight, Rounding(4, 32))
    q, s, z = quantized.q.numpy(), quantized.scales.float().numpy(), quantized.zeros.numpy()
    expected = np.empty((3, 64), np.float32)
    for n in range(3):
        for k in range(64):
            expected[n, k] = (np.float32(q[n, k]) - np.float32(z[n, k // 32])) * s[n, k // 32]
    np.testing.assert_array_equal(quantized.dequantize().numpy(), expected)


def test_round_trip_is_quantize_then_dequantize():
    weight = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    for rounding in ALL_ROUNDINGS:
        torch.testing.assert_close(
            round_trip(weight, rounding), quantize(weight, rounding).dequantize(), rtol=0, atol=0
        )


@pytest.mark.parametrize("rounding", [one for one in ALL_ROUNDINGS if one.group_size == 32], ids=str)
@pytest.mark.parametrize(
    "group",
    [
        np.zeros(32),
        np.full(32, 3.25),
        np.full(32, -1e-3),
        np.full(32, 3e38),
        np.concatenate([np.full(16, -3e38), np.full(16, 3e38)]),
        np.concatenate([[1e30], np.zeros(31)]),
        np.concatenate([[7e4], np.full(31, 0.01)]),
        np.full(32, 1e-45),
        np.linspace(-1e-40, 1e-40, 32),
        np.linspace(-1e-7, 1e-7, 32),
        np.linspace(2.0, 3.0, 32),
        np.linspace(-3.0, -2.0, 32),
    ],
    ids=str,
)
def test_odd_groups_stay_finite(rounding, group):
    weight = torch.tensor(group, dtype=torch.float32).view(1, 32)
    quantized = quantize(weight, rounding)
    assert _finite(quantized)
    assert bool(torch.isfinite(quantized.dequantize()).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_groups_err_by_half_a_step_in_the_middle_of_the_levels(bits):
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(4))
    quantized = quantize(weight, Rounding(bits, 64, symmetric=True))
    assert bool((quantized.zeros == 1 << (bits - 1)).all())
    error = (quantized.dequantize() - weight).abs() / quantized.scales.float()
    assert float(error.max()) <= 0.5 + (1 << bits) * 2.0**-11
    # Both a row whose largest and one whose smallest weight decides are among the fifty.
    assert float(quantized.q.min()) == 0
    assert float(quantized.q.max()) == (1 << bits) - 1


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("rounding", [Rounding(4, 32), Rounding(3, PER_CHANNEL), Rounding(4, 64, True)])
def test_some_rows_at_a_time_give_the_same_bits(monkeypatch, rounding, rows):
    weight = torch.randn(7, 192, generator=torch.Generator().manual_seed(5))
    scales = torch.rand(192, generator=torch.Generator().manual_seed(6)) + 0.5
    whole, rounded = quantize(weight * scales, rounding), round_trip(weight * scales, rounding) / scales
    monkeypatch.setattr(group_quantize, "_WEIGHTS_AT_ONCE", rows * 192)
    parts = quantize(weight * scales, rounding)
    assert torch.equal(parts.q, whole.q)
    assert torch.equal(parts.scales, whole.scales)
    assert torch.equal(parts.zeros, whole.zeros)
    assert torch.equal(round_trip(weight, rounding, scales), rounded)
    assert torch.equal(round_trip(weight, rounding), quantize(weight, rounding).dequantize())


@pytest.mark.parametrize("value", [3.25, -0.7, 1000.0])
def test_constant_group_is_kept(value):
    weight = torch.full((1, 32), value)
    back = quantize(weight, Rounding(4, 32)).dequantize()
    torch.testing.assert_close(back, weight, rtol=2**-10, atol=0)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_nan=False), min_size=31, max_size=31),
    st.integers(2, 8),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_exact_zero_stays_zero(values, bits, symmetric):
    weight = torch.tensor([[0.0, *values]], dtype=torch.float32)
    quantized = quantize(weight, Rounding(bits, 32, symmetric))
    assert _finite(quantized)
    assert float(quantized.dequantize()[0, 0]) == 0.0


@pytest.mark.parametrize("bits", [0, 1, 9, -4])
def test_bits_refused(bits):
    with pytest.raises(UsageError, match="2, 3, 4, 5, 6, 7, 8"):
        Rounding(bits, 64)


@pytest.mark.parametrize("size", [0, 1, 48, 256, -2])
def test_group_size_refused(size):
    with pytest.raises(UsageError, match="32, 64, 128"):
        Rounding(4, size)


def test_auto_takes_the_largest_that_divides_all():
    assert choose_group_size("auto", {"a": 512, "b": 1024}) == 128
    assert choose_group_size("auto", {"a": 576, "b": 1536}) == 64
    assert choose_group_size("auto", {"a": 96, "b": 128}) == 32
    assert choose_group_size("64", {"a": 576, "b": 1536}) == 64
    assert choose_group_size(32, {"a": 576, "b": 1536}) == 32


def test_one_group_a_row_fits_rows_of_any_length():
    assert choose_group_size(PER_CHANNEL, {"a": 96, "b": 64}) == PER_CHANNEL
    assert choose_group_size("-1", {"a": 100}) == PER_CHANNEL


def test_group_size_that_does_not_divide_lists_what_does():
    with pytest.raises(UsageError, match=r"(?s)down.*fit all linears: 64, 32, -1") as caught:
        choose_group_size(128, {"up": 256, "down": 576})
    assert caught.value.fix == "--group-size 64"


def test_auto_without_any_that_fits():
    with pytest.raises(UsageError, match="fit all linears: -1"):
        choose_group_size("auto", {"a": 100, "b": 96})


def test_group_size_that_is_no_number():
    with pytest.raises(UsageError, match="not a number"):
        choose_group_size("large", {"a": 128})
