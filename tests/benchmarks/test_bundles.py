"""Bundles beside each other, on those of a tiny model."""

from __future__ import annotations

import json

import pytest

from benchmarks.bundles import main
from benchmarks.bundles import test_of as named_test
from tests.support import tiny_decoder as tiny


@pytest.mark.slow
def test_a_bundle_beside_itself(tmp_path_factory, capsys):
    """The same numbers, to the bit, and times of all that was asked for."""
    bundle = str(tiny.quantized_llama(tmp_path_factory).bundle)
    assert main([bundle, bundle, "--tests", "pp5,all5,tg3", "--repetitions", "3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["test"] for one in found] == ["pp5", "all5", "tg3"]
    for one in found:
        assert one["logits_differ_by"] == [0, 0]
        assert one["times_as_fast"][0] == 1
        assert all(0 < low <= high for low, _, high in one["milliseconds"])


@pytest.mark.parametrize("name", ["", "pp", "pp0", "tg-1", "all", "xx5"])
def test_what_is_no_test_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="is no test"):
        named_test(name, [1])
