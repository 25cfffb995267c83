"""SmolLM2-135M, quantized and compiled for CUDA and Metal, whole in the emulator, against PyTorch."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.compile.driver import compile_model
from awq_tvm.compile.vocabulary import round_vocabulary
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.emulate.test_bundles import TOLERANCE, needs_this_machine, target_of
from tests.support.emulated_bundle import Part, run_in_emulator
from tests.support.tiny_decoder import Array, torch_logits

pytestmark = [*needs_this_machine, pytest.mark.slow]

VOCABULARY_BITS, GREEDY = 8, 8

PARTS: dict[str, list[Part]] = {
    "cuda": [(129, "all"), (33, "all"), (17, "all"), (9, "all")],
    "metal": [(33, "all"), (17, "all"), (9, "all"), (5, "all"), (2, "all")],
}
"""So many tokens at once that each kernel of every linear has its turn."""

SMS = 8
"""So few that the widest linears fill them, and the down projection is divided along k."""

NEVER_LAUNCHED = {
    # What the KV cache could do for forked sequences, speculation and debugging, which the engine has not.
    "copy_single_page_kernel",
    "compact_kv_copy_kernel",
    "tir_kv_cache_debug_get_kv_kernel",
    # Decoding so many sequences that they fill the GPU undivided.
    "attention_decode_paged_kernel_2",
    # The compiler turns reshapes into views, and leaves their kernels where they are.
    "reshape_kernel",
    "reshape1_kernel",
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "quantized"
    quantize_checkpoint("demo", path, method="rtn", group_size=64)
    return path


def logits_in_float16(model: torch.nn.Module, ids: list[int]) -> Array:
    """The same with what every module returns rounded to float16, as bundles for GPUs have it."""

    def rounded(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return output.half().float() if torch.is_tensor(output) else output

    hooks = [m.register_forward_hook(rounded) for m in model.modules() if not list(m.children())]
    try:
        return torch_logits(model, ids)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_every_kernel_of_smollm2_agrees_with_pytorch(kind: str, quantized: Path, tmp_path: Path) -> None:
    if kind == "cuda" and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    bundle = tmp_path / "bundle"
    target = dataclasses.replace(target_of(kind), num_sms=SMS if kind == "cuda" else None)
    compile_model(str(quantized), bundle, target=target, vocabulary_bits=VOCABULARY_BITS)
    # The compiler rounds the vocabulary: PyTorch gets the same.
    model = build_model(round_vocabulary(open_checkpoint(str(quantized)), VOCABULARY_BITS))
    vocabulary = model.config.vocab_size
    found = run_in_emulator(bundle, tmp_path, parts=PARTS[kind], greedy=GREEDY, vocabulary=vocabulary)
    expected, rounded = (of(model, found.ids)[found.rows] for of in (torch_logits, logits_in_float16))
    # Some random tokens put the model where any rounding grows: PyTorch, rounded, says which, and how far. Where it
    # grows tenfold, one way of rounding says little about how far another goes.
    by_rounding = np.abs(rounded - expected).max(1)
    grown = np.where(by_rounding > 10 * np.median(by_rounding), 8, 2)
    bound = np.maximum(TOLERANCE * np.abs(expected).max(), grown * by_rounding)
    assert (grown > 2).mean() < 0.05
    assert (np.abs(found.logits - expected).max(1) < bound).all()
    assert np.median(by_rounding) < TOLERANCE * np.abs(expected).max()
    assert found.ids[-GREEDY:] == expected.argmax(1)[-GREEDY - 1 : -1].tolist()
    assert np.abs(expected).max() > 1
    (source,) = bundle.glob("kernels.[cm][ue]*")
    kernels = set(
        re.findall(r"void (?:__launch_bounds__\(\d+\) )?(\w+_kernel(?:_\d+)?)\(", source.read_text())
    )
    assert len(kernels) > 20
    assert kernels - found.launches.keys() <= NEVER_LAUNCHED
