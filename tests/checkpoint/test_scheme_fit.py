from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from awq_tvm.checkpoint import PER_CHANNEL, QuantizationScheme, check_scheme_fits, linears_to_quantize
from awq_tvm.checkpoint.config import FAMILIES, normalise_config
from awq_tvm.checkpoint.scheme_fit import is_skipped, least_bytes
from awq_tvm.errors import UsageError

from .tiny_models import all_linears, tiny_config


def normalised(**changes: Any) -> dict[str, Any]:
    return normalise_config(tiny_config(**changes), "here")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linears_of_the_layers(family: str) -> None:
    config = normalise_config(tiny_config(family), "here")
    assert linears_to_quantize(config) == all_linears()
    without = {name: shape for name, shape in all_linears().items() if not name.endswith("down_proj")}
    assert linears_to_quantize(config, ("down_proj", "lm_head")) == without
    assert linears_to_quantize({"model_type": "something_new"}) == {}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("model.layers.1.mlp.up_proj", True),
        ("up_proj", True),
        ("mlp.up_proj", True),
        ("model.layers.1", True),
        ("model.layers.1.mlp.up", False),
        ("p_proj", False),
        ("model.layers.11", False),
    ],
)
def test_names_match_by_whole_parts(item: str, expected: bool) -> None:
    assert is_skipped("model.layers.1.mlp.up_proj", (item,)) is expected


def test_a_group_size_that_divides_is_accepted() -> None:
    for group_size in (1, 4, 8, 16, 32):
        check_scheme_fits(normalised(), QuantizationScheme(4, group_size))
    check_scheme_fits({"model_type": "something_new"}, QuantizationScheme(4, 7))


def test_a_group_size_that_does_not_divide_lists_the_legal_ones() -> None:
    with pytest.raises(UsageError, match="group_size 64 does not divide") as caught:
        check_scheme_fits(normalised(), QuantizationScheme(4, 64))
    assert caught.value.fix == "use one of 16, 32"
    assert "has in_features 32" in (caught.value.why or "")
    with pytest.raises(UsageError) as caught:
        check_scheme_fits(normalised(intermediate_size=172), QuantizationScheme(3, 64))
    assert caught.value.fix == "use one of 4"


def test_outputs_that_fill_no_word_are_refused_for_autoawq_only() -> None:
    odd = normalised(intermediate_size=172)
    check_scheme_fits(odd, QuantizationScheme(3, 4))
    check_scheme_fits(odd, QuantizationScheme(4, 4, zero_point=False))
    check_scheme_fits(odd, QuantizationScheme(4, 4, True, ("gate_proj", "up_proj")))
    check_scheme_fits(odd, QuantizationScheme(4, 4), "compressed-tensors")
    for format in ("auto", "awq"):
        with pytest.raises(UsageError, match="out_features 172 is not a multiple of 8"):
            check_scheme_fits(odd, QuantizationScheme(4, 4), format)


def test_least_bytes_is_a_close_lower_bound() -> None:
    linears = sum(rows * columns for rows, columns in all_linears().values())
    dense = 2 * 48 * 32
    assert least_bytes(normalised(), QuantizationScheme(4, 8)) == linears // 8 * (4 + 2) + 2 * dense
    assert least_bytes({"model_type": "something_new"}, QuantizationScheme(4, 8)) == 0


def test_rows_without_groups_must_fill_whole_words() -> None:
    odd = normalised(intermediate_size=36)
    check_scheme_fits(odd, QuantizationScheme(8, PER_CHANNEL))
    with pytest.raises(UsageError, match="rows of 36 values of 3 bits do not fill whole words"):
        check_scheme_fits(odd, QuantizationScheme(3, PER_CHANNEL))


def test_exceptions_are_checked_and_counted() -> None:
    """The embedding and the head too, where they are named."""
    plain, eight = QuantizationScheme(4, 8), QuantizationScheme(8, PER_CHANNEL)
    mixed = replace(plain, exceptions={"model.embed_tokens": eight, "model.layers.0.mlp.up_proj": eight})
    check_scheme_fits(normalised(), mixed)
    more = 64 * 32 * (8 - 4) // 8 + 64 * 2 * (1 - 4) + 48 * (32 + 2) - 48 * 32 * 2
    assert least_bytes(normalised(), mixed) == least_bytes(normalised(), plain) + more
    with pytest.raises(UsageError, match=r"model\.embed_tokens has in_features 32"):
        check_scheme_fits(
            normalised(), replace(plain, exceptions={"model.embed_tokens": QuantizationScheme(8, 64)})
        )
    with pytest.raises(UsageError, match="cannot store this scheme"):
        check_scheme_fits(normalised(), mixed, "awq")
