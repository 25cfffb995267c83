"""The whole path: a checkpoint of transformers, rounded to 4 bits and written, compiled, loaded, asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import BundleError
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.support import tiny_decoder as tiny


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tiny.Compiled:
    return tiny.quantized_llama(tmp_path_factory)


def test_the_checkpoint_is_quantized(compiled: tiny.Compiled) -> None:
    checkpoint = open_checkpoint(str(compiled.checkpoint))
    assert checkpoint.format == "awq"
    assert len(checkpoint.quantized) == 7 * tiny.LAYERS


def test_text_goes_in_and_text_comes_out(compiled: tiny.Compiled) -> None:
    engine = Engine.load(compiled.bundle)
    prompt = tiny.tokens(10, seed=8)
    answer = engine.generate(" ".join(f"w{token}" for token in prompt), SamplingOptions(max_tokens=24))
    with torch.no_grad():
        whole = compiled.model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
    assert list(answer.token_ids) == whole[0, len(prompt) :].tolist()
    assert answer.finish_reason == "length"
    for token in answer.token_ids:
        assert f"w{token}" in answer.text


def test_a_damaged_library_is_never_loaded(compiled: tiny.Compiled, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in compiled.bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    open_bundle(copy)
    library = copy / open_bundle(copy).manifest.library
    library.write_bytes(library.read_bytes()[:-100])
    with pytest.raises(BundleError, match="another size"):
        Engine.load(copy)
