"""A checkpoint as a PyTorch model: an empty skeleton from the config alone, filled a part at a time."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import CheckpointError
from awq_tvm.quantize.device import place_buffers, placed
from awq_tvm.quantize.families import Family, family_of
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.network_config import parse_network_config, refusing_bad_configs
from awq_tvm.quantize.plain_linears import StoredLinear, replace_by_linears

_SIXTEEN_BITS = {np.dtype(np.float16): torch.float16, np.dtype(ml_dtypes.bfloat16): torch.bfloat16}


def build_skeleton(config: Mapping[str, Any]) -> PreTrainedModel:
    """Make the network that a config describes, with no memory behind its weights.

    Args:
        config: config.json of one of the known families.

    Returns:
        A causal language model in evaluation mode, its parameters on the "meta" device, its rotary tables
        computed on the CPU (see `device.place_buffers`), and every matrix of its blocks a linear.

    Raises:
        UnsupportedError: an unknown family.
        CheckpointError: a config from which no network can be made.
    """
    family_of(config)
    with refusing_bad_configs():
        parsed = parse_network_config(config)
        with _parameters_on_meta(), torch.device("cpu"):
            # Attention as the family computes it best; some have scores that only plain products can cap.
            model = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32)
            replace_by_linears(model)
    model.eval()
    model.requires_grad_(False)
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put parameters on "meta" as they are made; buffers, such as rotary tables, are computed for real."""
    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def fill(
    module: torch.nn.Module, prefix: str, checkpoint: Checkpoint, as_stored: Collection[str] = ()
) -> None:
    """Read the parameters of a module that are still on "meta" from a checkpoint, as float32.

    Args:
        module: the skeleton, or a part of it.
        prefix: the name of the part in the checkpoint, without a dot at the end; "" for the whole model.
        checkpoint: where to read; quantized weights are dequantized.
        as_stored: paths of linears below the module whose weights stay float16 or bfloat16 where the files have
            them so, in half the memory; those that compute with them in a way of their own get float32 anyhow.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    for name, parameter in list(module.named_parameters()):
        if parameter.is_meta:
            parent, _, leaf = name.rpartition(".")
            owner = module.get_submodule(parent)
            keep = leaf == "weight" and parent in as_stored and isinstance(owner, StoredLinear)
            weight = read_weight(checkpoint, f"{prefix}.{name}" if prefix else name, as_stored=keep)
            if weight.shape != parameter.shape:
                raise CheckpointError(
                    "A weight does not have the shape that the config asks for",
                    where=f"{prefix}.{name}",
                    why=f"found {list(weight.shape)}, needed {list(parameter.shape)}",
                )
            setattr(owner, leaf, torch.nn.Parameter(weight, requires_grad=False))


def empty(module: torch.nn.Module) -> None:
    """Give the memory of a module's parameters back: they are on "meta" again."""
    for name, parameter in list(module.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        shape_alone = torch.empty_like(parameter, device="meta", dtype=torch.float32)
        nothing = torch.nn.Parameter(shape_alone, requires_grad=False)
        setattr(module.get_submodule(parent), leaf, nothing)


def read_weight(checkpoint: Checkpoint, name: str, *, as_stored: bool = False) -> torch.Tensor:
    """Read one weight as float32, dequantized where it is quantized.

    Args:
        checkpoint: where to read.
        name: a parameter's name in Hugging Face terms.
        as_stored: float16 and bfloat16 stay what they are.

    Returns:
        A tensor that nothing else shares.

    Raises:
        CheckpointError: there is no such weight.
    """
    linear = name.removesuffix(".weight")
    if linear != name and linear in checkpoint.quantized:
        return placed(checkpoint.read_quantized(linear).dequantize())
    values = checkpoint.read(name)
    kept = _SIXTEEN_BITS.get(values.dtype) if as_stored else None
    if kept is None:
        return placed(np.array(values, dtype=np.float32, order="C"))
    # PyTorch does not know numpy's bfloat16: it gets the bits.
    return placed(torch.from_numpy(np.array(values, order="C").view(np.uint16)).view(kept))


def build_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Build the whole model in float32 on the device that is worked on.

    Args:
        checkpoint: dense or quantized; with a quantized one this is the model with the same fake-quantized
            weights.

    Returns:
        A causal language model in evaluation mode.

    Raises:
        UnsupportedError: an unknown family.
        CheckpointError: no network can be made from the config, or a weight is missing.
    """
    checkpoint = in_network_terms(checkpoint)
    model = build_skeleton(checkpoint.config)
    place_buffers(model)
    if model.config.tie_word_embeddings:
        # Tied parameters are one object: filled once under the embedding's name, then tied again.
        fill(model.get_input_embeddings(), embedding_path(model), checkpoint)
        model.tie_weights()
    fill(model, "", checkpoint)
    return model


def embedding_path(model: PreTrainedModel) -> str:
    """Path of the token embedding."""
    embedding = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is embedding)


def outside_blocks(model: PreTrainedModel, family: Family) -> dict[str, torch.nn.Module]:
    """The modules with parameters that stand before and after the blocks, by path, without the head."""
    base = model.get_submodule(family.base)
    return {
        name: module
        for name, module in base.named_modules(prefix=family.base)
        if not name.startswith(f"{family.blocks}.") and any(True for _ in module.parameters(recurse=False))
    }


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Let float32 matrix products take the faster path where it is as exact as float32 here.

    "medium" allows bfloat16 inside, which some processors use for three-term products that are as good as
    float32 and others for a plain rounding to 8 bits. Which it is gets measured, not assumed.
    """
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        if _matmul_error() > 2e-6:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _matmul_error() -> float:
    generator = torch.Generator().manual_seed(0)
    shapes = (256, 512), (512, 256)
    left, right = (placed(torch.randn(shape, generator=generator, device="cpu")) for shape in shapes)
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).norm() / exact.norm())


def quiet_transformers() -> None:
    """Keep the library's advice about configs off our output."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
