"""SmolLM2-135M, quantized and compiled for CUDA and Metal, whole in the emulator, against PyTorch."""

from __future__ import annotations

import re
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
from awq_tvm.targets import resolve
from tests.emulate.test_bundles import TOLERANCE, needs_this_machine, target_of
from tests.support.emulated_bundle import Part, run_in_emulator
from tests.support.emulated_linear import Linear
from tests.support.tiny_decoder import Array, torch_logits

pytestmark = [*needs_this_machine, pytest.mark.slow]

VOCABULARY_BITS, GREEDY = 8, 8

DRAWS, FAR = 10, 3
"""How often PyTorch's activations are rounded at random, and how many times the root mean square of its errors a row
may be off: a single draw of thirty, of each of 196 rows, is up to three times that of the others."""

TENSOR_CORES: list[Part] = [(65, "all"), (33, "all"), (17, "all"), (9, "all")]
PARTS: dict[str, list[Part]] = {
    "cuda": TENSOR_CORES,
    "h100": TENSOR_CORES,
    "metal": [(33, "all"), (17, "all"), (9, "all"), (5, "all"), (2, "all")],
}
"""So many tokens at once that each kernel of every linear has its turn, but for those of ``LONG``."""

FORK = {"cuda": 21, "h100": 21, "metal": 0}
"""Tokens that a second sequence shares: a page, which it reads, and a part of one, which it is given a copy of."""

LAYER = "model.layers.0"
QKV = tuple(f"{LAYER}.self_attn.{name}_proj" for name in "qkv")
OUT = (f"{LAYER}.self_attn.o_proj",)
GATE_UP = (f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj")
DOWN = (f"{LAYER}.mlp.down_proj",)
HEAD = ("model.embed_tokens",)

LONG: dict[str, dict[tuple[str, ...], int]] = {
    "cuda": {QKV: 1301, OUT: 2101, GATE_UP: 401, DOWN: 2101},
    "h100": {QKV: 3101, OUT: 4101, GATE_UP: 1101, DOWN: 4101, HEAD: 129},
    "metal": {},
}
"""So many tokens that the largest tiles fill the SMs and k is divided no more. The model reads 512 at once, and gives
logits for 128 of them."""

NEVER_LAUNCHED = {
    # What the KV cache could do for speculation and debugging, which the engine has not.
    "compact_kv_copy_kernel",
    "tir_kv_cache_debug_get_kv_kernel",
    # Decoding so many sequences that they fill the GPU undivided; the bundle has room for eight.
    "attention_decode_paged_kernel_2",
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


def tolerated(model: torch.nn.Module, ids: list[int], expected: Array) -> tuple[Array, Array]:
    """How far each row of logits may be off, and how far rounding moves it.

    Some random tokens put the model where any rounding grows: PyTorch's own says in which rows, and how far.
    """
    by_rounding = error_of_rounding(model, ids, expected)
    return np.maximum(TOLERANCE * np.abs(expected).max(), FAR * by_rounding), by_rounding


def long_linears(kind: str, model: torch.nn.Module) -> list[tuple[Linear, Array]]:
    """What is called alone, and its weights."""
    made = []
    for modules, tokens in LONG[kind].items():
        W = np.concatenate([model.get_submodule(module).weight.numpy() for module in modules])
        has_residual, is_gated = modules in (OUT, DOWN), modules == GATE_UP
        made.append((Linear(modules, *W.shape, has_residual, is_gated, tokens), W))
    return made


def compiled(kind: str, quantized: Path, bundle: Path) -> None:
    """As shipped, but for what nvcc makes of the kernels, of which the emulator reads the source."""
    target = target_of(kind) if kind == "metal" else resolve(kind)
    compile_model(
        str(quantized), bundle, target=target, vocabulary_bits=VOCABULARY_BITS, source_only=kind != "metal"
    )


@pytest.mark.parametrize("kind", PARTS)
def test_every_kernel_of_smollm2_agrees_with_pytorch(kind: str, quantized: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    compiled(kind, quantized, bundle)
    # The compiler rounds the vocabulary: PyTorch gets the same.
    model = build_model(round_vocabulary(open_checkpoint(str(quantized)), VOCABULARY_BITS))
    linears = long_linears(kind, model)
    found = run_in_emulator(
        bundle,
        tmp_path,
        parts=PARTS[kind],
        greedy=GREEDY,
        vocabulary=model.config.vocab_size,
        fork=FORK[kind],
        alone=[linear for linear, _ in linears],
    )
    whole = torch_logits(model, found.ids)
    bound, by_rounding = (of_all[found.rows] for of_all in tolerated(model, found.ids, whole))
    expected = whole[found.rows]
    error = np.abs(found.logits - expected).max(1)
    assert (error < bound).all()
    # Most rows would hide a fault of that size: as a whole they are no further off than rounding puts them.
    assert np.median(error / by_rounding) < 1
    assert np.median(by_rounding) < TOLERANCE * np.abs(expected).max()
    assert found.ids[-GREEDY:] == expected.argmax(1)[-GREEDY - 1 : -1].tolist()
    assert np.abs(expected).max() > 1

    if FORK[kind]:
        forked = [*found.ids[: FORK[kind]], found.ids[-1]]
        of_fork = torch_logits(model, forked)
        assert np.abs(found.forked - of_fork[-1]).max() < tolerated(model, forked, of_fork)[0][-1]

    for y, (linear, W) in zip(found.alone, linears, strict=True):
        # wgmma takes weights that are rounded to float16 once they are scaled.
        assert linear.worst(y, W.astype(np.float16) if kind == "h100" else W) < 1, linear

    (source,) = bundle.glob("kernels.[cm][ue]*")
    kernels = set(
        re.findall(r"void (?:__launch_bounds__\(\d+\) )?(\w+_kernel(?:_\d+)?)\(", source.read_text())
    )
    assert len(kernels) > 20
    copied = set() if FORK[kind] else {"copy_single_page_kernel"}
    assert kernels - found.launches.keys() <= NEVER_LAUNCHED | copied
