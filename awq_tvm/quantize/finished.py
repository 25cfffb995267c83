"""What a finished run writes: the tensors of the new checkpoint, those of one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from awq_tvm.checkpoint import QuantizedWeight
from awq_tvm.quantize.architecture import Architecture
from awq_tvm.quantize.awq import half
from awq_tvm.quantize.block_stream import from_arrays
from awq_tvm.quantize.device import taken_back
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.names import NetworkView
from awq_tvm.quantize.rounding_plan import RoundingPlan, Roundings
from awq_tvm.quantize.torch_model import read_weight
from awq_tvm.quantize.vocabulary import quantize_rows


def dense_tensors(
    checkpoint: NetworkView,
    architecture: Architecture,
    journal: Journal,
    plan: RoundingPlan,
    vocabulary: Roundings,
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Everything that is written as float16, one tensor at a time, by its name in the files."""
    on_disk = checkpoint.names.on_disk
    for name in checkpoint.carried:
        yield name, taken_back(half(read_weight(checkpoint.files, name), name))
    changed = (journal.read_ending() or ({}, {}))[0]
    for name in _outside_blocks(checkpoint, architecture):
        if name in changed:
            yield on_disk(name), changed[name]
        elif name.removesuffix(".weight") not in vocabulary:
            yield on_disk(name), taken_back(half(read_weight(checkpoint, name), name))
    for index in range(journal.finished):
        where = f"{architecture.blocks}.{index}"
        dense, _ = from_arrays(journal.read_block(index), where, plan)
        yield from ((on_disk(f"{where}.{name}"), array) for name, array in dense.items())


def quantized_linears(
    checkpoint: NetworkView,
    architecture: Architecture,
    journal: Journal,
    plan: RoundingPlan,
    vocabulary: Roundings,
) -> Iterator[tuple[str, QuantizedWeight]]:
    """The quantized matrices by their names in the files, the linears of one block in memory at a time."""
    on_disk = checkpoint.names.on_disk
    for name, rounding in vocabulary.items():
        yield on_disk(name), quantize_rows(checkpoint, name, rounding)
    for index in range(journal.finished):
        where = f"{architecture.blocks}.{index}"
        _, quantized = from_arrays(journal.read_block(index), where, plan)
        yield from ((on_disk(f"{where}.{name}"), weight) for name, weight in quantized.items())


def _outside_blocks(checkpoint: NetworkView, architecture: Architecture) -> list[str]:
    """Names of the dense tensors that belong to no block."""
    return [name for name in checkpoint.tensors if not name.startswith(f"{architecture.blocks}.")]
