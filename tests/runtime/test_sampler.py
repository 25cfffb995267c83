from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_tvm.errors import BundleError, UsageError
from awq_tvm.runtime.sampler import MAX_NEW_TOKENS, Sampler, SamplingOptions, _largest, _nucleus

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))


def _draws(options: SamplingOptions, count: int = 4000, logits: np.ndarray = LOGITS) -> Counter[int]:
    sampler = Sampler(options)
    return Counter(sampler.sample(logits) for _ in range(count))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", 0, f"found 0, legal is from 1 to {MAX_NEW_TOKENS}"),
        ("max_tokens", 10**9, f"found {10**9}, legal is from 1 to {MAX_NEW_TOKENS}"),
        ("temperature", float("nan"), "found nan, legal is from 0 to 100"),
        ("temperature", float("inf"), "found inf"),
        ("temperature", -0.1, "found -0.1"),
        ("top_k", -1, "found -1"),
        ("top_p", 2.0, "found 2.0, legal is above 0 to 1"),
        ("top_p", 0.0, "found 0.0, legal is above 0 to 1"),
        ("min_p", 1.5, "found 1.5"),
        ("repetition_penalty", 0.0, "found 0.0, legal is above 0 to 100"),
        ("presence_penalty", 2.5, "found 2.5, legal is from -2 to 2"),
        ("frequency_penalty", float("nan"), "found nan"),
        ("logprobs", 21, "found 21, legal is from 0 to 20"),
        ("logprobs", -1, "found -1"),
        ("seed", -1, "found -1"),
        ("seed", 1 << 63, "legal is from 0"),
        ("stop", ("",), "found 0, legal is from 1"),
        ("stop", ("x",) * 65, "found 65, legal is from 0 to 64"),
    ],
)
def test_options_out_of_range(name: str, value: object, message: str) -> None:
    SamplingOptions()
    with pytest.raises(UsageError, match=message):
        SamplingOptions(**{name: value})


def test_greedy_takes_the_most_likely_and_the_lower_of_equals() -> None:
    assert Sampler(SamplingOptions()).sample(LOGITS) == 1
    assert Sampler(SamplingOptions()).sample(np.array([0.0, 3.0, 3.0], np.float32)) == 1


def test_draws_follow_the_distribution() -> None:
    counts = _draws(SamplingOptions(temperature=1.0, seed=0), 20_000)
    for token, chance in enumerate(np.exp(LOGITS)):
        # Five standard deviations of a binomial: the seed is fixed, so this holds always or never.
        assert abs(counts[token] - 20_000 * chance) < 5 * (20_000 * chance * (1 - chance)) ** 0.5


def test_temperature_sharpens() -> None:
    cold = _draws(SamplingOptions(temperature=0.25, seed=1))
    expected = np.exp(LOGITS.astype(np.float64) / 0.25)
    expected /= expected.sum()
    assert abs(cold[1] / 4000 - expected[1]) < 0.05
    assert _draws(SamplingOptions(temperature=1e-9, seed=1)).keys() == {1}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.84}, {1, 3, 4}),
        ({"top_p": 1e-12}, {1}),
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 0.3}, {1, 3, 4}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.6}, {1, 3}),
    ],
)
def test_filters_keep_exactly(options: dict[str, float], kept: set[int]) -> None:
    assert _draws(SamplingOptions(temperature=1.0, seed=2, **options)).keys() == kept


def test_repetition_penalty_counts_prompt_and_answer_and_leaves_the_logits() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    before = logits.copy()
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5), prompt_tokens=[0])
    assert sampler.sample(logits) == 1
    assert sampler.sample(logits) == 0  # 1.33 against 1.27: both are penalised now
    np.testing.assert_array_equal(logits, before)
    negative = Sampler(SamplingOptions(repetition_penalty=2.0), prompt_tokens=[0])
    assert negative.sample(np.array([-1.0, -1.5], np.float32)) == 1


@given(
    values=st.lists(st.integers(0, 9), min_size=1, max_size=300),
    part=st.floats(0, 1),
    top_p=st.floats(0.01, 0.99),
)
def test_shortcuts_agree_with_a_full_sort(values: list[int], part: float, top_p: float) -> None:
    array = np.array(values, np.float64)
    count = 1 + int(part * (len(values) - 1))
    order = np.argsort(-array, kind="stable")
    np.testing.assert_array_equal(_largest(array, count), order[:count])
    chances = np.exp(array) / np.exp(array).sum()
    found = _nucleus(chances, top_p)
    np.testing.assert_array_equal(found, order[: found.size])
    assert found.size == order.size or chances[found].sum() >= top_p


def test_seed_repeats() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.sample(LOGITS) for _ in range(64)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)


@given(
    logits=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    temperature=st.floats(1e-30, 100),
    top_k=st.integers(0, 50),
    top_p=st.floats(1e-9, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_finite_logits_give_a_token(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    token = Sampler(options).sample(np.array(logits, np.float32))
    assert 0 <= token < len(logits)


def test_masked_logits_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    assert _draws(SamplingOptions(temperature=1.0, seed=3), logits=logits).keys() == {1, 3}


@pytest.mark.parametrize("bad", [[0.0, np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature))
    sampler.sample(LOGITS)
    with pytest.raises(BundleError, match="not a number"):
        sampler.sample(np.array(bad, np.float32))


def test_presence_counts_once_and_frequency_every_time() -> None:
    """Logits 3, 2 and 1: the first goes under the second when 1 was taken off, under the third after 2."""
    logits = np.array([3.0, 2.0, 1.0], np.float32)

    def drawn(**options: float) -> list[int]:
        sampler = Sampler(SamplingOptions(**options), prompt_tokens=[1])
        return [sampler.sample(logits) for _ in range(5)]

    assert drawn() == [0] * 5
    assert drawn(presence_penalty=1.5) == [0, 1, 0, 0, 0]  # 1.5, then 0.5 too, and no lower
    assert drawn(frequency_penalty=0.75) == [0, 0, 1, 0, 1]
    assert drawn(frequency_penalty=-1.0) == [0] * 5
    np.testing.assert_array_equal(logits, [3.0, 2.0, 1.0])
