"""The targets by name: registration, aliases, and a lookup that never guesses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from awq_tvm.errors import TargetError
from awq_tvm.targets import arm, cuda, metal, x86
from awq_tvm.targets.description import Target
from awq_tvm.targets.detection import detect

# Short names for what people most often mean. "auto" and "cpu" are this machine and are not in the table.
ALIASES: Mapping[str, str] = MappingProxyType(
    {"cuda": "cuda-sm80-to-sm90", "metal": "apple-m1-gpu", "arm": "armv8.2-dotprod"}
)
THIS_MACHINE = ("auto", "cpu")

_LEAST_LIKENESS = 0.6  # of a name worth naming, by difflib's ratio

_registered: dict[str, Target] = {}


def register(target: Target) -> Target:
    """Add a target under its name and return it.

    Raises:
        TargetError: the name is taken, by another target, an alias or a word for this machine.
    """
    if target.name in _registered or target.name in ALIASES or target.name in THIS_MACHINE:
        raise TargetError(
            "A target of this name exists already",
            where=f"target {target.name!r}",
            why="names are unique, and aliases count",
            fix="choose another name",
        )
    _registered[target.name] = target
    return target


def all_targets() -> tuple[Target, ...]:
    """Every registered target, in the order of registration; this machine is not among them."""
    return tuple(_registered.values())


def resolve(name: str) -> Target:
    """Find the one target that `name` means.

    `name` is "auto" or "cpu" (this machine), an alias, a registered name, or words that begin or end exactly
    one registered name ("h100" for "nvidia-h100"). Case, spaces and underscores do not matter.

    Raises:
        TargetError: nothing matches, or more than one target does; the candidates are named.
    """
    wanted = "-".join(name.replace("_", " ").replace("-", " ").lower().split())
    if wanted in THIS_MACHINE:
        return detect()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in _registered:
        return _registered[wanted]
    matches = [known for known in _registered if wanted and f"-{known}-".startswith(f"-{wanted}-")]
    matches += [
        known for known in _registered if wanted and known.endswith(f"-{wanted}") and known not in matches
    ]
    if len(matches) == 1:
        return _registered[matches[0]]
    if matches:
        raise TargetError(
            f"The target {name!r} is not clear",
            where="--target",
            why=f"it matches {', '.join(matches)}",
            fix=f"name one of them, such as --target {matches[0]}",
        )
    near = _nearest(wanted)
    known_names = [*THIS_MACHINE, *ALIASES, *_registered]
    raise TargetError(
        f"There is no target {name!r}",
        where="--target",
        why=f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(known_names)}",
        fix="list them all with: python -m awq_tvm targets",
    )


def _nearest(wanted: str) -> list[str]:
    """Up to three names of which some words, one after the other, are nearly what was asked for."""
    likeness: dict[str, float] = {}
    for name in (*THIS_MACHINE, *ALIASES, *_registered):
        words = name.split("-")
        runs = ["-".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
        likeness[name] = max(
            difflib.SequenceMatcher(None, run, wanted).ratio() for run in runs if len(run) > 1
        )
    likely = [name for name in likeness if likeness[name] > _LEAST_LIKENESS]
    return sorted(likely, key=lambda name: -likeness[name])[:3]


for _group in (x86, arm, cuda, metal):
    for _target in _group.TARGETS:
        register(_target)
