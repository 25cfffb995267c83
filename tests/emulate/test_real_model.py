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
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

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

DRAWS, FAR = 10, 3
"""How often PyTorch's activations are rounded at random, and how many times the root mean square of its errors a row
may be off: a single draw of thirty, of each of 196 rows, is up to three times that of the others."""

PARTS: dict[str, list[Part]] = {
    "cuda": [(65, "all"), (129, "last"), (33, "all"), (17, "all"), (9, "all")],
    "metal": [(33, "all"), (17, "all"), (9, "all"), (5, "all"), (2, "all")],
}
"""So many tokens at once that each kernel of every linear has its turn; one chunk above 128 for a last row."""

SMS = 8
"""So few that the widest linears fill them. No linear is divided along k then, as it is for the SMs of a real GPU."""

NEVER_LAUNCHED = {
    # What the KV cache could do for forked sequences, speculation and debugging, which the engine has not.
    "copy_single_page_kernel",
    "compact_kv_copy_kernel",
    "tir_kv_cache_debug_get_kv_kernel",
    # Decoding so many sequences that they fill the GPU undivided.
    "attention_decode_paged_kernel_2",
    # The compiler turns reshapes into views, and leaves their kernels where they are.
    *(f"reshape{number}_kernel" for number in ("", 1, 2, 3)),
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "quantized"
    quantize_checkpoint("demo", path, method="rtn", group_size=64)
    return path


def round_at_random(x: torch.Tensor, chance: torch.Generator) -> None:
    """To one of the two float16 around each element, each as likely as it is near; float32 has 13 bits more."""
    noise = torch.randint(1 << 13, x.shape, generator=chance, dtype=torch.int32)
    x.view(torch.int32).add_(noise).bitwise_and_(-1 << 13)


def error_of_rounding(model: torch.nn.Module, ids: list[int], expected: Array) -> Array:
    """How far rounding to float16 moves each row of logits: the root mean square of its largest error over draws.

    What every module takes and gives is rounded where it lies, the residuals with it, as bundles for GPUs store it.
    To round to nearest is one draw, and small by chance in some rows where another way of rounding is not.
    """
    chance = torch.Generator()

    def rounded(_: torch.nn.Module, inputs: tuple[Any, ...], *output: torch.Tensor) -> None:
        for x in (*inputs, *output):
            if x.is_floating_point():
                round_at_random(x, chance)

    modules = [
        m for m in model.modules() if not list(m.children()) and not isinstance(m, LlamaRotaryEmbedding)
    ]
    hooks = [module.register_forward_pre_hook(rounded) for module in modules]
    hooks += [module.register_forward_hook(rounded) for module in modules]
    squares = np.zeros(len(ids))
    try:
        for seed in range(DRAWS):
            chance.manual_seed(seed)
            squares += np.abs(torch_logits(model, ids) - expected).max(1) ** 2
    finally:
        for hook in hooks:
            hook.remove()
    found: Array = np.sqrt(squares / DRAWS)
    return found


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
    whole = torch_logits(model, found.ids)
    expected, by_rounding = whole[found.rows], error_of_rounding(model, found.ids, whole)[found.rows]
    error = np.abs(found.logits - expected).max(1)
    # Some random tokens put the model where any rounding grows: PyTorch's own says in which rows, and how far.
    assert (error < np.maximum(TOLERANCE * np.abs(expected).max(), FAR * by_rounding)).all()
    # Most rows would hide a fault of that size: as a whole they are no further off than rounding puts them.
    assert np.median(error / by_rounding) < 1
    assert np.median(by_rounding) < TOLERANCE * np.abs(expected).max()
    assert found.ids[-GREEDY:] == expected.argmax(1)[-GREEDY - 1 : -1].tolist()
    assert np.abs(expected).max() > 1
    (source,) = bundle.glob("kernels.[cm][ue]*")
    kernels = set(
        re.findall(r"void (?:__launch_bounds__\(\d+\) )?(\w+_kernel(?:_\d+)?)\(", source.read_text())
    )
    assert len(kernels) > 20
    assert kernels - found.launches.keys() <= NEVER_LAUNCHED
