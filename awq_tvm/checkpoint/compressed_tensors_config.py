"""The quantization_config of compressed-tensors: groups of modules, each with its own scheme.

A group names its modules by class ("Linear"), by full name or by regular expression; the more exact wins.
Source: compressed-tensors, quantization/quant_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from awq_tvm.checkpoint.base import PER_CHANNEL, QuantizationScheme
from awq_tvm.checkpoint.module_targets import target_problem
from awq_tvm.checkpoint.packed_format import checked_scheme
from awq_tvm.errors import CheckpointError, UnsupportedError

_FORMAT = "pack-quantized"
_LINEAR = "Linear"


def parse_scheme(config: Mapping[str, Any], where: str) -> QuantizationScheme:
    """Read quantization_config.

    Returns:
        The scheme of the class "Linear", or else of the first group; the modules that groups name are its
        exceptions.

    Raises:
        CheckpointError: if a value is of the wrong type or out of range.
        UnsupportedError: for other formats of the library.
    """
    groups = config.get("config_groups")
    if (
        not isinstance(groups, dict)
        or not all(isinstance(one, dict) for one in groups.values())
        or not groups
    ):
        raise CheckpointError(
            "quantization_config has no config_groups", where=where, why=f"found {groups!r:.80}"
        )
    refused = [] if config.get("format", _FORMAT) == _FORMAT else [f"format is {config['format']!r:.80}"]
    schemes = [_scheme_of(group, config.get("ignore") or [], where, refused) for group in groups.values()]
    targets = [_targets_of(group, where) for group in groups.values()]
    classes = [
        (name, scheme)
        for names, scheme in zip(targets, schemes, strict=True)
        for name in names
        if _is_class(name)
    ]
    default = next((scheme for name, scheme in classes if name == _LINEAR), schemes[0])
    refused += [
        f"the class {name!r:.80} has a scheme of its own" for name, scheme in classes if scheme != default
    ]
    if refused:
        raise UnsupportedError(
            "a variant of compressed-tensors that is not read",
            where=where,
            why="; ".join(refused) + "; needed: pack-quantized int weights in groups or by channel",
            fix="quantize the original model with this tool",
        )
    exceptions = {
        name: replace(scheme, modules_to_not_convert=())
        for names, scheme in zip(targets, schemes, strict=True)
        for name in names
        if not _is_class(name)
    }
    return replace(default, exceptions=exceptions)


def _is_class(target: str) -> bool:
    """Whether a target is the name of a class rather than of a module."""
    return target[:1].isupper()


def _targets_of(group: Mapping[str, Any], where: str) -> list[str]:
    targets = group.get("targets", [_LINEAR])
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(
            "a group of quantization_config has no list of targets", where=where, why=f"{targets!r:.80}"
        )
    if problem := next(filter(None, map(target_problem, targets)), None):
        raise UnsupportedError(
            "a target of quantization_config that is not read",
            where=where,
            why=problem,
            fix="name the modules in full in config.json",
        )
    return targets


def _scheme_of(group: Mapping[str, Any], ignored: Any, where: str, refused: list[str]) -> QuantizationScheme:
    """The scheme of one group; what cannot be read is added to `refused`."""
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise CheckpointError(
            "quantization_config says nothing about weights", where=where, why=f"{weights!r:.80}"
        )
    size = weights.get("group_size")
    by_channel = weights.get("strategy") == "channel" or (size == -1 and weights.get("strategy") is None)
    wanted = {"type": "int", "strategy": "channel" if by_channel else "group", "dynamic": False}
    refused += [
        f"weights.{key} is {weights.get(key)!r:.80}"
        for key, value in wanted.items()
        if weights.get(key) not in (None, value)
    ]
    refused += [f"{key} is not null" for key in ("input_activations", "output_activations") if group.get(key)]
    if group.get("format") not in (None, _FORMAT):
        refused.append(f"format is {group['format']!r:.80}")
    actorder = weights.get("actorder")
    if actorder not in (None, False, True, "static", "weight", "group") or (by_channel and actorder):
        refused.append(f"weights.actorder is {actorder!r:.80}" + (" by channel" if by_channel else ""))
    if by_channel and size not in (None, -1):
        refused.append(f"weights.group_size is {size!r:.80} by channel")
    symmetric = weights.get("symmetric", True)
    zero_point = not symmetric if isinstance(symmetric, bool) else symmetric
    if refused:  # what the other values mean is not known
        return QuantizationScheme(4, PER_CHANNEL)
    scheme = checked_scheme(weights.get("num_bits"), 1 if by_channel else size, zero_point, ignored, where)
    scheme = replace(scheme, act_order=actorder is True or actorder == "group")
    return replace(scheme, group_size=PER_CHANNEL) if by_channel else scheme


def describe(scheme: QuantizationScheme) -> dict[str, Any]:
    """Return quantization_config as compressed-tensors writes it, one group for each scheme there is."""
    groups: dict[str, dict[str, Any]] = {}
    for target, one in ((_LINEAR, scheme), *scheme.exceptions.items()):
        weights = _weights(one)
        group = next((group for group in groups.values() if group["weights"] == weights), None)
        if group is None:
            group = groups[f"group_{len(groups)}"] = {
                "targets": [],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
                "format": _FORMAT,
            }
        group["targets"].append(target)
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(scheme.modules_to_not_convert),
        "kv_cache_scheme": None,
    }


def _weights(scheme: QuantizationScheme) -> dict[str, Any]:
    by_channel = scheme.group_size == PER_CHANNEL
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": not scheme.zero_point,
        "strategy": "channel" if by_channel else "group",
        "group_size": None if by_channel else scheme.group_size,
        "dynamic": False,
        "actorder": "group" if scheme.act_order else None,
    }
