"""A checkpoint in the terms of the network that transformers makes, and the way back to the terms of its files.

Some files spell names otherwise, leave out what all names begin with, store a linear as [K, N], or have a vision
tower beside the language model. Quantized files keep the spelling of the files they were made from: other readers
expect it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy.typing as npt

from awq_tvm.checkpoint import Checkpoint, QuantizationScheme, QuantizedWeight
from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.errors import CheckpointError
from awq_tvm.quantize.families import SEEING, Family, family_of
from awq_tvm.quantize.network_config import language_config

_HEAD = "lm_head."


@dataclass(frozen=True, slots=True)
class Names:
    """How names in the files become those of the network, and back.

    Attributes:
        spelling: parts of names, in the network and on disk.
        base: what names of the network begin with, but for the head's.
        base_on_disk: what these names begin with in the files, "" for nothing.
        head_on_disk: what the head's begin with there.
        others: there are names in the files that are not of the network, but of what sees.
    """

    spelling: tuple[tuple[str, str], ...]
    base: str
    base_on_disk: str
    head_on_disk: str = _HEAD
    others: bool = False

    def of_network(self, name: str) -> bool:
        """Whether the network has this tensor or linear of the files."""
        return not self.others or f"{name}.".startswith((self.base_on_disk, self.head_on_disk))

    def in_network(self, name: str) -> str:
        """The network's name of a tensor or linear of the files."""
        parts = f"{name}."
        for network, disk in self.spelling:
            parts = parts.replace(disk, network)
        if parts.startswith(self.head_on_disk):
            parts = _HEAD + parts.removeprefix(self.head_on_disk)
        elif parts.startswith(self.base_on_disk):
            parts = self.base + parts.removeprefix(self.base_on_disk)
        return parts.removesuffix(".")

    def on_disk(self, name: str) -> str:
        """The files' name of a tensor or linear of the network."""
        parts = f"{name}."
        for network, disk in self.spelling:
            parts = parts.replace(network, disk)
        if parts.startswith(_HEAD):
            parts = self.head_on_disk + parts.removeprefix(_HEAD)
        elif parts.startswith(self.base):
            parts = self.base_on_disk + parts.removeprefix(self.base)
        return parts.removesuffix(".")

    def scheme_on_disk(self, scheme: QuantizationScheme) -> QuantizationScheme:
        """A scheme that names its exceptions as the files do."""
        return replace(
            scheme, exceptions={self.on_disk(name): one for name, one in scheme.exceptions.items()}
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkView(Checkpoint):
    """A checkpoint whose config, names and shapes are those of the network: of a model that sees, its language part.

    Attributes:
        names: the way back to the files.
        files: the checkpoint as it was opened.
        carried: names of the tensors in the files that the network does not have: what sees.
    """

    names: Names
    files: Checkpoint
    carried: tuple[str, ...]


def in_network_terms(checkpoint: Checkpoint) -> NetworkView:
    """Show a checkpoint as the network wants it; a view of it is returned as it is.

    Args:
        checkpoint: as it was opened.

    Raises:
        UnsupportedError: an unknown family.
        CheckpointError: two of its tensors would have one name, or a model that sees has no language model in
            its files.
    """
    if isinstance(checkpoint, NetworkView):
        return checkpoint
    config = language_config(checkpoint.config)
    family = family_of(config)
    names = _names_in(checkpoint, family)
    stored = [name for name in (*checkpoint.tensors, *checkpoint.quantized) if names.of_network(name)]
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
    of_disk = {disk: name for name, disk in on_disk.items()}
    return NetworkView(
        **{
            **kept,
            "config": config,
            "tensors": {
                name: _info(checkpoint.tensors[disk], _is_transposed(family, name))
                for name, disk in on_disk.items()
                if disk in checkpoint.tensors
            },
            "quantized": tuple(of_disk[name] for name in checkpoint.quantized if name in of_disk),
            "load_dense": dense,
            "load_quantized": quantized if load_quantized is not None else None,
        },
        names=names,
        files=checkpoint,
        carried=tuple(name for name in checkpoint.tensors if name not in of_disk),
    )


def _names_in(checkpoint: Checkpoint, family: Family) -> Names:
    """How the files of a checkpoint spell names."""
    stored = [*checkpoint.tensors, *checkpoint.quantized]
    base = f"{family.base}."
    seeing = SEEING.get(checkpoint.config["model_type"])
    if seeing is None:
        has_base = any(name.startswith(base) for name in stored)
        return Names(family.spelling, base, base if has_base else "")
    for base_on_disk, head_on_disk in seeing.layouts:
        if any(name.startswith(f"{base_on_disk}embed_tokens") for name in stored):
            return Names(family.spelling, base, base_on_disk, head_on_disk, others=True)
    raise CheckpointError(
        "The files have no language model",
        where=checkpoint.source,
        why=f"no tensor is named {' or '.join(f'{name}embed_tokens.weight' for name, _ in seeing.layouts)}",
        fix="check that all files of the model are there",
    )


def _is_transposed(family: Family, name: str) -> bool:
    linear, _, leaf = name.rpartition(".")
    return leaf == "weight" and linear.rpartition(".")[2] in family.transposed


def _info(info: TensorInfo, transposed: bool) -> TensorInfo:
    return replace(info, shape=info.shape[::-1]) if transposed else info
