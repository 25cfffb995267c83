"""A line of JSON that says whether it is whole: what a device writes and another machine reads."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MAX_LINE_BYTES = 64 << 20


def sealed(body: dict[str, Any]) -> bytes:
    """The line of an object, with its line break."""
    return _text({**body, "sha256": _digest(body)}).encode() + b"\n"


def unsealed(line: bytes) -> dict[str, Any]:
    """Read back what ``sealed`` wrote.

    Raises:
        ValueError: in words for people, whatever is wrong with it.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line has {len(line)} bytes, at most {MAX_LINE_BYTES} are read")
    try:
        body = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON, or torn: {error.msg}") from None
    if not isinstance(body, dict):
        raise ValueError("it is no object")
    seal = body.pop("sha256", None)
    if seal != _digest(body):
        raise ValueError("its checksum does not fit: it was changed or torn")
    return body


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number that can be meant")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
