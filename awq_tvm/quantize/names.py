"""A checkpoint in the terms of the network that transformers makes, and the way back to the terms of its files.

Some files spell names otherwise, leave out what all names begin with, or store a linear as [K, N]. Quantized files
keep the spelling of the files they were made from: other readers expect it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy.typing as npt

from awq_tvm.checkpoint import Checkpoint, QuantizationScheme, QuantizedWeight
from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.errors import CheckpointError
from awq_tvm.quantize.families import Family, family_of

_HEAD = "lm_head."


@dataclass(frozen=True, slots=True)
class Names:
    """How names in the files become those of the network, and back.

    Attributes:
        spelling: parts of names, in the network and on disk.
        prefix: what names of the network begin with, but for the head's, and those of the files do not.
    """

    spelling: tuple[tuple[str, str], ...]
    prefix: str

    def in_network(self, name: str) -> str:
        """The network's name of a tensor or linear of the files."""
        parts = f"{name}."
        for network, disk in self.spelling:
            parts = parts.replace(disk, network)
        if not parts.startswith((_HEAD, self.prefix)):
            parts = self.prefix + parts
        return parts.removesuffix(".")

    def on_disk(self, name: str) -> str:
        """The files' name of a tensor or linear of the network."""
        parts = f"{name}."
        for network, disk in self.spelling:
            parts = parts.replace(network, disk)
        return parts.removeprefix(self.prefix).removesuffix(".")

    def scheme_on_disk(self, scheme: QuantizationScheme) -> QuantizationScheme:
        """A scheme that names its exceptions as the files do."""
        return replace(
            scheme, exceptions={self.on_disk(name): one for name, one in scheme.exceptions.items()}
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkView(Checkpoint):
    """A checkpoint whose names and shapes are those of the network.

    Attributes:
        names: the way back to the files.
    """

    names: Names


def in_network_terms(checkpoint: Checkpoint) -> NetworkView:
    """Show a checkpoint as the network wants it; a view of it is returned as it is.

    Args:
        checkpoint: as it was opened.

    Raises:
        UnsupportedError: an unknown family.
        CheckpointError: two of its tensors would have one name.
    """
    if isinstance(checkpoint, NetworkView):
        return checkpoint
    family = family_of(checkpoint.config)
    stored = [*checkpoint.tensors, *checkpoint.quantized]
    has_prefix = any(name.startswith(f"{family.base}.") for name in stored)
    names = Names(family.spelling, "" if has_prefix else f"{family.base}.")
    on_disk = {names.in_network(name): name for name in stored}
    if len(on_disk) < len(stored):
        twice = sorted(set(stored) - set(on_disk.values()))
        raise CheckpointError(
            "Weights are stored twice, under two spellings", where=checkpoint.source, why=", ".join(twice)
        )
    load_quantized = checkpoint.load_quantized

    def dense(name: str) -> npt.NDArray[Any]:
        values = checkpoint.load_dense(on_disk[name])
        return values.T if _is_transposed(family, name) else values

    def quantized(name: str) -> QuantizedWeight:
        assert load_quantized is not None
        return load_quantized(on_disk[name])

    kept: Mapping[str, Any] = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    return NetworkView(
        **{
            **kept,
            "tensors": {
                name: _info(checkpoint.tensors[disk], _is_transposed(family, name))
                for name, disk in on_disk.items()
                if disk in checkpoint.tensors
            },
            "quantized": tuple(names.in_network(name) for name in checkpoint.quantized),
            "load_dense": dense,
            "load_quantized": quantized if load_quantized is not None else None,
        },
        names=names,
    )


def _is_transposed(family: Family, name: str) -> bool:
    linear, _, leaf = name.rpartition(".")
    return leaf == "weight" and linear.rpartition(".")[2] in family.transposed


def _info(info: TensorInfo, transposed: bool) -> TensorInfo:
    return replace(info, shape=info.shape[::-1]) if transposed else info
