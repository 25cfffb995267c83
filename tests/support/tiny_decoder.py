"""Tiny random decoders, made and run by transformers, and compiled by us: the two sides of most tests here.

Every matrix is exactly representable in float16, in which compiled models store unquantized matrices, so that
what is left between the two sides is rounding in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from tvm.relax.frontend.nn import op

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.checkpoint import (
    QuantizationScheme,
    QuantizedWeight,
    write_quantized_checkpoint,
)
from awq_tvm.compile.driver import CompileReport, compile_model
from awq_tvm.models import export
from awq_tvm.runtime.executor import Executor

VOCAB, HIDDEN, LAYERS, CONTEXT = 120, 64, 2, 192
Array = np.ndarray[Any, Any]

TOLERANCE = 2e-5
"""Bound of |compiled - torch| / max |torch| for logits and hidden states.

Both sides compute in float32, unit roundoff u = 6e-8, and sum at most K = 128 products a matmul. The error of a
sum in any order is below K u = 8e-6 of the sum of the magnitudes, but grows as sqrt(K) u = 7e-7 where roundings
are independent. Some 20 such steps lie one behind the other, each passed on by the residual stream: 1.4e-5.
"""


def make_model(model_type: str, *, seed: int = 0, **changes: Any) -> Any:
    """A transformers model in float32 with weights large enough that the logits are far from uniform."""
    fields: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    config = AutoConfig.for_model(model_type, **{**fields, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(_random_weight(name, parameter))
    return model


def _random_weight(name: str, like: Any) -> Any:
    if like.ndim == 1:
        return torch.randn_like(like) * 0.3 + (0.0 if name.endswith("bias") else 1.0)
    return (torch.randn_like(like) * like.shape[1] ** -0.5 * 1.5).half().float()


def tokenizer_json() -> bytes:
    """A tokenizer with one word for each id of the vocabulary."""
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def save_dense(model: Any, folder: Path) -> Path:
    """Write the model as transformers does, with a tokenizer."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    return folder


def round_to_nearest(
    weight: Array, bits: int, group_size: int, *, symmetric: bool = False
) -> QuantizedWeight:
    """Codes of W[N, K] by group; symmetric ones have their zero point in the middle."""
    groups = weight.reshape(weight.shape[0], -1, group_size).astype(np.float64)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    middle = 2 ** (bits - 1)
    step = np.maximum(-low, high) / (middle - 1) if symmetric else (high - low) / (2**bits - 1)
    scales = step.astype(np.float16)
    zeros = np.full(scales.shape, middle) if symmetric else np.rint(-low / scales).clip(0, 2**bits - 1)
    q = np.rint(groups / scales[..., None].astype(np.float64) + zeros[..., None]).clip(0, 2**bits - 1)
    return QuantizedWeight(
        q.reshape(weight.shape).astype(np.uint8), scales, zeros.astype(np.uint8), bits, group_size
    )


def scattered(weight: Array, bits: int, group_size: int, seed: int) -> QuantizedWeight:
    """The same with groups of channels drawn by chance, as a quantizer that goes by activation order makes."""
    order = np.random.default_rng(seed).permutation(weight.shape[1])
    sorted_columns = round_to_nearest(weight[:, order], bits, group_size)
    q, group_of = np.empty_like(sorted_columns.q), np.empty(len(order), np.int32)
    q[:, order] = sorted_columns.q
    group_of[order] = np.arange(len(order)) // group_size
    return replace(sorted_columns, q=q, group_of=group_of)


def save_quantized(
    model: Any,
    folder: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    embedding: bool = False,
    exceptions: Mapping[str, QuantizationScheme] | None = None,
    side_files: Mapping[str, bytes] | None = None,
    act_order: bool = False,
    symmetric: bool = False,
) -> Path:
    """Quantize the layers' linears, the embedding if asked, and `exceptions` in place; write a checkpoint."""
    scheme = QuantizationScheme(
        bits, group_size, zero_point=not symmetric, exceptions=exceptions or {}, act_order=act_order
    )
    state = {name: array.numpy() for name, array in model.state_dict().items()}
    config = model.config.to_dict()
    linears = {
        name: round_to_nearest(
            array,
            scheme.of(name).bits,
            scheme.of(name).width(array.shape[1]),
            symmetric=not scheme.of(name).zero_point,
        )
        for name, array in ((key.removesuffix(".weight"), value) for key, value in state.items())
        if array.ndim == 2
        and (
            name.startswith("model.layers.")
            or (embedding and "embed_tokens" in name)
            or name in scheme.exceptions
        )
    }
    for seed, name in enumerate(linears):
        one, array = scheme.of(name), state[f"{name}.weight"]
        if one.act_order:
            linears[name] = scattered(array, one.bits, one.width(array.shape[1]), seed)
    with torch.no_grad():
        for name, weight in linears.items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(weight.dequantize()))
    skipped = {f"{name}.weight" for name in linears}
    if config["tie_word_embeddings"]:
        skipped.add("lm_head.weight")
    return write_quantized_checkpoint(
        folder,
        config=config,
        scheme=scheme,
        dense=[(name, array) for name, array in state.items() if name not in skipped],
        quantized=list(linears.items()),
        side_files={"tokenizer.json": tokenizer_json()} if side_files is None else side_files,
        card="# tiny\n",
    )


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB, count)]


def torch_logits(model: Any, ids: Sequence[int]) -> Array:
    """Logits after every token, [len(ids), VOCAB]."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def torch_hidden_states(model: Any, ids: Sequence[int]) -> list[Array]:
    """What enters the first layer, what leaves each but the last, and what leaves the final norm."""
    with torch.no_grad():
        states = model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states]


def relative_error(found: Array, expected: Array) -> float:
    """Largest |found - expected|, relative to the largest |expected|."""
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


@dataclass(frozen=True)
class Compiled:
    """A bundle and the model in PyTorch that it must agree with."""

    model: Any
    checkpoint: Path
    bundle: Path
    report: CompileReport

    def executor(self) -> Executor:
        """Verify and load the bundle."""
        opened = open_bundle(self.bundle)
        return Executor(opened.library, opened.weights, opened.manifest, threads=2)


def compile_dense(model: Any, folder: Path, **options: Any) -> Compiled:
    """Save with transformers, compile for this machine."""
    return _compile(model, save_dense(model, folder / "checkpoint"), folder / "bundle", options)


def compile_quantized(
    model: Any,
    folder: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    embedding: bool = False,
    exceptions: Mapping[str, QuantizationScheme] | None = None,
    act_order: bool = False,
    symmetric: bool = False,
    **options: Any,
) -> Compiled:
    """Quantize the model in place, save, compile for this machine with float activations."""
    checkpoint = save_quantized(
        model,
        folder / "checkpoint",
        bits=bits,
        group_size=group_size,
        embedding=embedding,
        exceptions=exceptions,
        act_order=act_order,
        symmetric=symmetric,
    )
    return _compile(model, checkpoint, folder / "bundle", {"activations": "float", **options})


def _compile(model: Any, checkpoint: Path, bundle: Path, options: dict[str, Any]) -> Compiled:
    report = compile_model(
        str(checkpoint), bundle, **{"vocabulary_bits": 16, "kv_cache": "float32", **options}
    )
    return Compiled(model, checkpoint, bundle, report)


_built: dict[str, Compiled] = {}


def quantized_llama(factory: pytest.TempPathFactory) -> Compiled:
    """One compiled 4-bit model with biases everywhere, built once, for all tests that need just any bundle."""
    if "quantized_llama" not in _built:
        model = make_model("llama", attention_bias=True, mlp_bias=True)
        _built["quantized_llama"] = compile_quantized(model, factory.mktemp("quantized_llama"))
    return _built["quantized_llama"]


@contextmanager
def hidden_states_shown() -> Iterator[None]:
    """Let compiled models return their hidden states too: row [h_0, ..., h_L, logits] for each wanted token.

    h_0 is what enters the first layer, h_i what leaves layer i. The model's own ``forward`` runs unchanged.
    """
    families = {name: _showing(family) for name, family in export.FAMILIES.items()}
    with mock.patch.dict(export.FAMILIES, families):
        yield


def _showing(family: type) -> type:
    class Showing(family):  # type: ignore[misc]
        def forward(self, input_ids: Any, logit_positions: Any, kv_cache: Any) -> Any:
            states: list[Any] = []
            parts = [self.model.embed_tokens, *self.model.layers]
            for part in parts:
                part.forward = _recorded(part.forward, states)
            logits = super().forward(input_ids, logit_positions, kv_cache)
            rows = [op.take(state, logit_positions, axis=0) for state in states]
            return op.concat([*rows, logits], dim=1)

    return Showing


def _recorded(forward: Callable[..., Any], into: list[Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any) -> Any:
        into.append(forward(*arguments))
        return into[-1]

    return wrapper


def split_states(rows: Array) -> tuple[list[Array], Array]:
    """Hidden states and logits of what a model compiled under ``hidden_states_shown`` returns."""
    states = np.split(rows[:, :-VOCAB], LAYERS + 1, axis=1)
    return states, rows[:, -VOCAB:]
