"""`generate` watched in a process of its own, on a bundle of a tiny model."""

from __future__ import annotations

import json

import pytest

from benchmarks.memory_generate import main
from tests.support import tiny_decoder as tiny


@pytest.mark.slow
def test_one_line(tmp_path_factory, capfd):
    bundle = str(tiny.quantized_llama(tmp_path_factory).bundle)
    arguments = [bundle, "--prompt", "w5 w7", "--max-tokens", "3", "--repetitions", "1"]
    assert main([*arguments, "--bar", "4000"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert 20 < found["above_bundle"] < 4000
    assert found["peak"] == pytest.approx(found["bundle"] + found["above_bundle"], abs=0.2)
    assert found["own"] + found["mapped"] <= found["peak"] + 0.2
    assert 0 < found["first_text_seconds"] <= found["seconds"]
    assert found["cpu_seconds"] > 0
    assert main([*arguments, "--bar", "1"]) == 1
    with pytest.raises(SystemExit):
        main([bundle + "x"])
    with pytest.raises(SystemExit):
        main([bundle, "--prompt", ""])
