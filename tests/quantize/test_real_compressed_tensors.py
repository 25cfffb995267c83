"""Folders that `quantize` writes, loaded by transformers with the real compressed-tensors library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.quantize import quantize_checkpoint
from tests.quantize.tiny_models import save_tiny_model

pytest.importorskip("compressed_tensors")


def _load(folder: Path) -> PreTrainedModel:
    from transformers import CompressedTensorsConfig

    decompressed = CompressedTensorsConfig(run_compressed=False)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=decompressed, dtype=torch.float32)


def _check(folder: Path) -> None:
    """Every quantized linear is, to the library, the weight that we dequantize; the logits are finite."""
    written, model = open_checkpoint(str(folder)), _load(folder)
    for name in written.quantized:
        found = model.get_submodule(name).weight.detach().float().numpy()
        wanted = written.read_quantized(name).dequantize()
        np.testing.assert_allclose(found, wanted, rtol=2**-10, atol=1e-7, err_msg=name)
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.arange(20).unsqueeze(0)).logits).all())


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (4, True), (8, True), (3, False), (8, False)])
def test_one_width(tmp_path, bits, symmetric):
    save_tiny_model(tmp_path / "model")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn", bits=bits, symmetric=symmetric)
    _check(tmp_path / "q")
