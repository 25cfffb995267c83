"""Configurations of schedule families as plain fields and back: what tuned records hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from awq_tvm.errors import UnsupportedError


def to_fields(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """The named fields of a configuration; one that is itself a frozen dataclass becomes a dict."""
    return {name: _plain(getattr(config, name)) for name in names}


def from_fields(default: Any, named: Mapping[str, Any], allowed: Iterable[str]) -> Any:
    """A configuration with some fields of its own, the others as in the default.

    Args:
        default: the family's configuration.
        named: as ``to_fields`` made them, or read from a file.
        allowed: the fields that may be named.

    Raises:
        UnsupportedError: a field is not allowed, of another type, or the whole is proved impossible.
    """
    strange = set(named) - set(allowed)
    if strange:
        raise UnsupportedError(
            "This configuration has fields that are not tuned",
            where=", ".join(sorted(strange)),
            why=f"those of {type(default).__name__} here are {', '.join(sorted(allowed))}",
        )
    return _replaced(default, named)


def _plain(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _replaced(default: Any, named: Mapping[str, Any]) -> Any:
    known = {field.name: getattr(default, field.name) for field in fields(default)}
    changes = {}
    for name, value in named.items():
        before = known.get(name)
        if is_dataclass(before) and isinstance(value, Mapping):
            changes[name] = _replaced(before, value)
        elif name in known and type(value) is type(before):
            changes[name] = value
        else:
            raise UnsupportedError(
                "A field of a configuration is of another type",
                where=f"{type(default).__name__}.{name}",
                why=f"found {value!r:.80}, the default is {before!r:.80}",
            )
    return replace(default, **changes)
