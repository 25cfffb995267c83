"""SmolLM2-135M, quantized and compiled for a GPU, whole in the emulator, against PyTorch.

Each GPU has a file of tests of its own, so that several are run at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
from awq_tvm.targets import Target
from tests.support.emulated_bundle import TOLERANCE, Emulated, Part, run_in_emulator
from tests.support.emulated_linear import Linear
from tests.support.gpu_kernels import FUNCTIONS, error_bound
from tests.support.made_once import made_once
from tests.support.tiny_decoder import Array, torch_logits

VOCABULARY_BITS, GREEDY = 8, 8

DRAWS, FAR = 10, 3
"""How often PyTorch's activations are rounded at random, and how many times the root mean square of its errors a row
may be off: a single draw of thirty, of each of 196 rows, is up to three times that of the others."""

TENSOR_CORES: list[Part] = [(65, "all"), (33, "all"), (17, "all"), (9, "all")]
"""So many tokens at once that tensor cores' kernels of every linear have their turn, but for those of many more."""

LAYER = "model.layers.0"
QKV = tuple(f"{LAYER}.self_attn.{name}_proj" for name in "qkv")
OUT = (f"{LAYER}.self_attn.o_proj",)
GATE_UP = (f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj")
DOWN = (f"{LAYER}.mlp.down_proj",)
HEAD = ("model.embed_tokens",)

NEVER_LAUNCHED = {
    # What the KV cache could do for speculation and debugging, which the engine has not.
    "compact_kv_copy_kernel",
    "tir_kv_cache_debug_get_kv_kernel",
    # Decoding so many sequences that they fill the GPU undivided; the bundle has room for eight.
    "attention_decode_paged_kernel_2",
}


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        target: it is compiled for.
        parts: so many tokens at once that each kernel of every linear has its turn, but for those of ``alone``.
        fork: tokens that a second sequence shares: a page, which it reads, and a part of one, which is copied for it.
        alone: linears called alone, with so many tokens that the largest tiles fill the SMs and k is divided no more,
            or that its parts are clusters. The model reads 512 at once, and gives logits for 128 of them.
        float16_weights: whether weights are rounded to float16 once they are scaled.
    """

    target: Target
    parts: list[Part]
    fork: int = 0
    alone: Sequence[tuple[tuple[str, ...], int]] = ()
    float16_weights: bool = False


def _quantize(folder: Path) -> None:
    quantize_checkpoint("demo", folder / "quantized", method="rtn", group_size=64)


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


def linears_alone(case: Case, model: torch.nn.Module) -> list[tuple[Linear, Array]]:
    """What is called alone, and its weights."""
    made = []
    for modules, tokens in case.alone:
        W = np.concatenate([model.get_submodule(module).weight.numpy() for module in modules])
        has_residual, is_gated = modules in (OUT, DOWN), modules == GATE_UP
        made.append((Linear(modules, *W.shape, has_residual, is_gated, tokens), W))
    return made


def worst_error(linear: Linear, found: Array, W: Array) -> float:
    """The largest error of y, [M, N], as a part of what it may be."""
    x, *residual = (array.astype(float) for array in linear.inputs())
    y, magnitude = x @ W.astype(float).T, np.abs(x) @ np.abs(W.astype(float)).T
    if linear.is_gated:
        (gate, up), (of_gate, of_up) = np.split(y, 2, 1), np.split(magnitude, 2, 1)
        gate = FUNCTIONS["silu"](gate)
        y, magnitude = gate * up, 1.13 * of_gate * np.abs(up) + of_up * np.abs(gate)
    y = sum(residual, y)
    bound = error_bound(y, magnitude + np.abs(y), linear.in_features, "float16")
    return float((np.abs(found.astype(float) - y) / bound).max())


def expect_agreement(case: Case, factory: pytest.TempPathFactory, folder: Path) -> None:
    """Every kernel is launched, and what comes of it is PyTorch's but for rounding; ``folder`` takes what is made."""
    quantized, bundle = made_once(factory, "smollm2", _quantize) / "quantized", folder / "bundle"
    # As shipped, but for what nvcc makes of the kernels, of which the emulator reads the source.
    source_only = case.target.kind == "cuda"
    compile_model(
        str(quantized), bundle, target=case.target, vocabulary_bits=VOCABULARY_BITS, source_only=source_only
    )
    # The compiler rounds the vocabulary: PyTorch gets the same.
    model = build_model(round_vocabulary(open_checkpoint(str(quantized)), VOCABULARY_BITS))
    linears = linears_alone(case, model)
    found = run_in_emulator(
        bundle,
        folder,
        parts=case.parts,
        greedy=GREEDY,
        vocabulary=model.config.vocab_size,
        fork=case.fork,
        alone=[linear for linear, _ in linears],
    )
    expect_logits(model, found, case.fork)
    for y, (linear, W) in zip(found.alone, linears, strict=True):
        assert worst_error(linear, y, W.astype(np.float16) if case.float16_weights else W) < 1, linear

    (source,) = bundle.glob("kernels.[cm][ue]*")
    kernels = set(
        re.findall(r"void (?:__launch_bounds__\([^)]*\) )?(\w+_kernel(?:_\d+)?)\(", source.read_text())
    )
    assert len(kernels) > 20
    copied = set() if case.fork else {"copy_single_page_kernel"}
    assert kernels - found.launches.keys() - NEVER_LAUNCHED - copied == set()


def expect_logits(model: torch.nn.Module, found: Emulated, fork: int) -> None:
    """Logits and greedy tokens are PyTorch's."""
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
    if fork:
        forked = [*found.ids[:fork], found.ids[-1]]
        of_fork = torch_logits(model, forked)
        assert np.abs(found.forked - of_fork[-1]).max() < tolerated(model, forked, of_fork)[0][-1]
