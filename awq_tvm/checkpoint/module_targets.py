"""Modules by name: a full name, or "re:" and a regular expression for the beginning of full names."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

_PATTERN = "re:"
_MAX_LENGTH = 512
# Literals, escapes, character sets, alternatives and repeated single characters: what matches in polynomial
# time. A few repetitions keep the polynomial small.
_TAME = re.compile(r"(?:[\w\-^$|]|\((?!\?)|\)(?![*+?{])|\\[.\-dws]|\[[\w\-]+\]|\.|(?<![(*+])[*+])*")
_MAX_REPEATS = 3


def target_problem(target: str) -> str | None:
    """Say why a target cannot be used, or None. A pattern from a file must not be able to stall a reader."""
    if not target.startswith(_PATTERN):
        return None
    pattern = target.removeprefix(_PATTERN)
    repeats = pattern.count("*") + pattern.count("+")
    if len(pattern) > _MAX_LENGTH or repeats > _MAX_REPEATS or not _TAME.fullmatch(pattern):
        return f"{target!r:.80} is not one of the simple regular expressions that are read"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{target!r:.80} is no regular expression: {error}"
    return None


def matching_target(name: str, targets: Collection[str]) -> str | None:
    """Return the target that names a module: its full name before patterns, these in alphabetical order.

    Source: compressed-tensors, utils/match.py, match_targets.
    """
    if name in targets:
        return name
    patterns = sorted(target for target in targets if target.startswith(_PATTERN))
    return next((target for target in patterns if _compiled(target).match(name)), None)


@lru_cache(maxsize=256)
def _compiled(target: str) -> re.Pattern[str]:
    return re.compile(target.removeprefix(_PATTERN))
