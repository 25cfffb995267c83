"""The cost of an int8 cache, on bundles of a tiny model."""

from __future__ import annotations

import json

import pytest

from benchmarks.kv_cache import main
from tests.support import tiny_decoder as tiny


@pytest.mark.slow
def test_a_bundle_against_itself_and_against_int8(tmp_path_factory, tmp_path, capsys):
    """Nothing between a bundle and itself; a little between it and one with an int8 cache."""
    compiled = tiny.quantized_llama(tmp_path_factory)
    eight = tiny.compile_quantized(compiled.model, tmp_path / "eight", kv_cache="int8")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{token}" for token in tiny.tokens(150)))
    rest = ["--text", str(text), "--context", "32", "--depths", "16", "--repetitions", "4"]
    assert main([str(compiled.bundle), str(compiled.bundle), *rest]) == 0
    same, time = map(json.loads, capsys.readouterr().out.splitlines())
    assert same["perplexity"][0] == same["perplexity"][1]
    assert same["kl_divergence"] == pytest.approx(0, abs=1e-6)
    assert 0 < time["milliseconds"]["first"][0] <= time["milliseconds"]["first"][2]
    assert main([str(compiled.bundle), str(eight.bundle), *rest]) == 0
    found, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["kv_cache"] == ["float32", "int8"]
    assert found["perplexity"][0] == same["perplexity"][0]
    assert 1e-7 < found["kl_divergence"] < 0.01
