"""The limits found are the best of the grid, by the error on stored activations."""

from __future__ import annotations

import pytest
import torch

from awq_tvm.quantize import clip_search, group_quantize
from awq_tvm.quantize.clip_search import count_outside, search_paper, search_two_sided
from awq_tvm.quantize.group_quantize import Rounding, group_range, quantize, round_trip_groups

ROUNDING = Rounding(3, 32)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 64, generator=generator) ** 3
    x = torch.randn(200, 64, generator=generator) * (torch.rand(64, generator=generator) * 4)
    moments = torch.stack([x[:, i : i + 32].T @ x[:, i : i + 32] for i in (0, 32)])
    return weight, x, moments


def _error(weight, x, limits):
    """Squared error of each group's partial sums, [N, G], written out on the activations."""
    change = quantize(weight, ROUNDING, limits).dequantize() - weight
    return torch.stack([((x[:, i : i + 32] @ change[:, i : i + 32].T) ** 2).sum(0) for i in (0, 32)], dim=1)


def test_weights_outside_are_counted_one_by_one(problem, monkeypatch):
    weight, _, moments = problem
    low, high = search_two_sided(weight, moments, ROUNDING)
    outside = sum(
        not low[row, column // 32] <= weight[row, column] <= high[row, column // 32]
        for row in range(12)
        for column in range(64)
    )
    assert count_outside(weight, (low, high)) == outside > 0
    monkeypatch.setattr(group_quantize, "_WEIGHTS_AT_ONCE", 5 * 64)
    assert count_outside(weight, (low, high)) == outside
    assert count_outside(weight, group_range(weight.view(12, 2, 32))) == 0


def test_paper_takes_the_best_ratio_of_each_group(problem):
    weight, x, moments = problem
    low, high = group_range(weight.view(12, 2, 32))
    largest = torch.maximum(-low, high)
    tried = []
    for step in range(10):
        ratio = 1.0 - 0.05 * step
        limits = torch.maximum(low, -largest * ratio), torch.minimum(high, largest * ratio)
        tried.append(_error(weight, x, limits))
    found = _error(weight, x, search_paper(weight, moments, ROUNDING))
    torch.testing.assert_close(found, torch.stack(tried).amin(0), rtol=1e-3, atol=1e-3)


def test_two_sided_is_never_worse_than_no_clip_and_better_in_all(problem):
    weight, x, moments = problem
    whole = _error(weight, x, group_range(weight.view(12, 2, 32)))
    two_sided = _error(weight, x, search_two_sided(weight, moments, ROUNDING))
    assert bool((two_sided <= whole * (1 + 1e-4)).all())
    assert float(two_sided.sum()) < 0.9 * float(whole.sum())


def test_symmetric_groups_are_clipped_for_symmetric_rounding(problem):
    weight, _, moments = problem
    rounding = Rounding(3, 32, symmetric=True)
    groups = weight.view(12, 2, 32)

    def error(limits):
        change = quantize(weight, rounding, limits).dequantize().view(12, 2, 32) - groups
        return torch.einsum("ngi,gij,ngj->ng", change, moments, change)

    whole = error(group_range(groups))
    found = error(search_two_sided(weight, moments, rounding))
    assert bool((found <= whole * (1 + 1e-4)).all())
    assert float(found.sum()) < 0.9 * float(whole.sum())


def test_ends_move_by_themselves():
    """One outlier on the positive side alone: the negative end stays where it was."""
    weight = torch.linspace(-1, 1, 32).view(1, 32).clone()
    weight[0, 20] = 1.9
    moments = torch.eye(32).unsqueeze(0)
    moments[0, 20, 20] = 1e-6
    low, high = search_two_sided(weight, moments, Rounding(4, 32))
    assert float(high) < 1.5
    assert float(low) < -0.9


def test_rows_are_worked_on_in_pieces(problem, monkeypatch):
    weight, _, moments = problem
    whole = search_two_sided(weight, moments, ROUNDING)
    monkeypatch.setattr(clip_search, "_WEIGHTS_AT_ONCE", 5 * 64)
    pieces = search_two_sided(weight, moments, ROUNDING)
    torch.testing.assert_close(whole, pieces)


def test_zeros_stay_zeros():
    weight = torch.zeros(4, 64)
    limits = search_two_sided(weight, torch.eye(32).expand(2, 32, 32), ROUNDING)
    groups = weight.view(4, 2, 32)
    assert torch.equal(round_trip_groups(groups, *limits, ROUNDING.levels), torch.zeros_like(groups))
