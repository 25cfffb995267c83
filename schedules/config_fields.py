"""Configurations of schedule families as plain fields and back: what tuned records hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from awq_tvm.errors import UnsupportedError


def to_fields(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """The named fields of a configuration; one that is itself a frozen dataclass becomes a dict.

    "few.0" names the first element of a field that is a tuple.
    """
    return {name: _plain(_value(config, name)) for name in names}


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


def _value(config: Any, name: str) -> Any:
    """A field, or an element of one that is a tuple; None where there is nothing of that name."""
    field, dot, place = name.partition(".")
    if field not in {one.name for one in fields(config)}:
        return None
    value = getattr(config, field)
    if not dot:
        return value
    within = isinstance(value, tuple) and place.isdecimal() and int(place) < len(value)
    return value[int(place)] if within else None


def _plain(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _replaced(default: Any, named: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for name, value in named.items():
        before = _value(default, name)
        if is_dataclass(before) and isinstance(value, Mapping):
            value = _replaced(before, value)
        field, dot, place = name.partition(".")
        if before is not None and type(value) is type(before):
            if dot:
                whole = list(changes.get(field, getattr(default, field)))
                whole[int(place)] = value
                changes[field] = tuple(whole)
            else:
                changes[field] = value
        else:
            raise UnsupportedError(
                "A field of a configuration is of another type",
                where=f"{type(default).__name__}.{name}",
                why=f"found {value!r:.80}, the default is {before!r:.80}",
            )
    return replace(default, **changes)
