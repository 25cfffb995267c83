"""The embedding and the head in 8 bits: what is compiled is what is rounded, and rounding is to the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from awq_tvm.checkpoint import QuantizationScheme, open_checkpoint
from awq_tvm.compile.vocabulary import round_vocabulary
from awq_tvm.errors import UsageError
from tests.support import tiny_decoder as tiny


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_bundle_computes_with_the_rounded_matrices(tmp_path: Path, tied: bool, bits: int) -> None:
    model = tiny.make_model("llama", tie_word_embeddings=tied)
    compiled = tiny.compile_quantized(model, tmp_path, vocabulary_bits=bits)
    rounded = round_vocabulary(open_checkpoint(str(compiled.checkpoint)), bits)
    ids = tiny.tokens(40)
    plain = tiny.torch_logits(model, ids)
    with torch.no_grad():
        for name in ("model.embed_tokens",) if tied else ("model.embed_tokens", "lm_head"):
            weight = rounded.read_quantized(name).dequantize()
            model.get_submodule(name).weight.copy_(torch.from_numpy(weight))
    executor = compiled.executor()
    found = executor.forward([executor.new_sequence()], [ids], logits="all")
    assert tiny.relative_error(found, tiny.torch_logits(model, ids)) < tiny.TOLERANCE
    assert tiny.relative_error(found, plain) > 10 * tiny.TOLERANCE
    with safe_open(compiled.bundle / "weights.safetensors", framework="numpy") as file:
        names = [name for name in file.keys() if "embed_tokens" in name or "lm_head" in name]  # noqa: SIM118
        stored = sum(file.get_tensor(name).nbytes for name in names)
    codes = (1 if tied else 2) * tiny.VOCAB * tiny.HIDDEN * bits // 8
    # Beside the codes a scale and a zero point for each group, and rows that fill the last block.
    assert codes < stored < 1.3 * codes


def _random(rows: int, width: int) -> Any:
    model = tiny.make_model("llama", vocab_size=rows, hidden_size=width, head_dim=width // 4)
    with torch.no_grad():
        # Groups of zeros, of one sign, and of sizes at both ends of float16.
        weight = model.model.embed_tokens.weight
        weight[0] = 0.0
        weight[1].abs_()
        weight[2].abs_().neg_()
        weight[3] *= 1e-6
        weight[4] *= 1e5
    return model


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "width", "group"), [(5000, 64, 64), (40, 96, 32), (40, 128, 128)])
def test_no_weight_moves_by_more_than_half_a_step(
    tmp_path: Path, bits: int, rows: int, width: int, group: int
) -> None:
    checkpoint = open_checkpoint(str(tiny.save_dense(_random(rows, width), tmp_path / "model")))
    rounded = round_vocabulary(checkpoint, bits)
    assert set(rounded.quantized) == {"model.embed_tokens", "lm_head"}
    assert rounded.scheme is not None
    assert rounded.scheme.of("lm_head") == QuantizationScheme(bits, group)
    for name in rounded.quantized:
        weight = checkpoint.read(f"{name}.weight").astype(np.float64)
        found = rounded.read_quantized(name)
        assert (found.bits, found.group_size) == (bits, group)
        steps = np.repeat(found.scales.astype(np.float64), group, axis=1)
        # Rounding the zero point may cost half a step at an end of the range, and rounding the step to float16 all
        # of them together what it changes the range by.
        inexact = np.maximum(2.0**-11, 2.0**-25 / steps)
        limit = steps * (1 + 2**bits * inexact)
        assert (np.abs(found.dequantize() - weight) <= limit).all()
        assert (found.dequantize()[weight == 0] == 0).all()
        middle = (found.q > 0) & (found.q < (1 << bits) - 1)
        assert (np.abs(found.dequantize() - weight)[middle] <= steps[middle] * 0.5001 + 1e-12).all()
    assert "lm_head.weight" not in rounded.tensors
    assert "model.norm.weight" in rounded.tensors


def test_what_cannot_or_need_not_be_rounded_stays(tmp_path: Path) -> None:
    quantized = tiny.save_quantized(tiny.make_model("llama"), tmp_path / "quantized", embedding=True)
    before = open_checkpoint(str(quantized))
    after = round_vocabulary(before, 8)
    assert set(after.quantized) - set(before.quantized) == {"lm_head"}
    np.testing.assert_array_equal(
        after.read_quantized("model.embed_tokens").q, before.read_quantized("model.embed_tokens").q
    )
    assert round_vocabulary(before, 16) is before
    narrow = open_checkpoint(
        str(tiny.save_dense(tiny.make_model("llama", hidden_size=48), tmp_path / "narrow"))
    )
    assert round_vocabulary(narrow, 8) is narrow


def test_other_widths_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_dense(tiny.make_model("llama"), tmp_path / "model")
    with pytest.raises(UsageError, match="5 bits"):
        round_vocabulary(open_checkpoint(str(folder)), 5)
