"""Read files and JSON that someone else wrote, with a bound on everything."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from awq_tvm.errors import CheckpointError

MAX_DEPTH = 64


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a regular file of at most limit_bytes.

    Raises:
        CheckpointError: if the file is missing, unreadable, not a regular file, or larger.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("not a regular file", where=str(path))
        if status.st_size > limit_bytes:
            raise CheckpointError(
                "a file is too large to be what its name says",
                where=str(path),
                why=f"{status.st_size} bytes; at most {limit_bytes} are read",
            )
        # The size is asked for again by the bound on read: the file may have grown since.
        with path.open("rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise CheckpointError(
            "cannot read a file", where=str(path), why=error.strerror or str(error)
        ) from error


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse bytes that must hold one JSON object.

    Args:
        raw: the bytes; the caller has bounded their number.
        where: named in the error.

    Raises:
        CheckpointError: on bytes that are not UTF-8 or not JSON, duplicate keys, NaN or Infinity, numbers
            too long to be meant, nesting beyond MAX_DEPTH, or a top level that is not an object.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            "JSON that is not UTF-8", where=where, why=f"byte {error.start}: {error.reason}"
        ) from error
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise CheckpointError(
            "JSON is nested too deep", where=where, why=f"more than {MAX_DEPTH} levels"
        ) from None
    except ValueError as error:
        raise CheckpointError("cannot parse JSON", where=where, why=str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError("JSON is not an object", where=where, why=f"found a {type(value).__name__}")
    if _deeper_than(value, MAX_DEPTH):
        raise CheckpointError("JSON is nested too deep", where=where, why=f"more than {MAX_DEPTH} levels")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r}")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True
