"""Data on standard output, talk on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awq_tvm.errors import AwqTvmError

SCHEMA_VERSION = 1


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, "schema_version" first; NaN and infinities become null."""
    document = json.dumps(_plain({"schema_version": SCHEMA_VERSION, **data}), ensure_ascii=False)
    print(document, flush=True)


def say(text: str = "") -> None:
    """Print talk on standard error."""
    print(text, file=sys.stderr, flush=True)


def report_error(error: AwqTvmError, *, as_json: bool) -> None:
    """Print an error: its four parts on standard error, and where asked as JSON on standard output."""
    say(f"error: {error}")
    if as_json:
        print_json(
            {
                "error": {
                    "kind": type(error).__name__,
                    "exit_code": error.exit_code,
                    "what": error.what,
                    "where": error.where,
                    "why": error.why,
                    "fix": error.fix,
                }
            }
        )


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = (), right: Sequence[int] = ()) -> str:
    """Columns of equal width, two blanks apart.

    Args:
        rows: cells by row, printed with str.
        header: names of the columns; none for no header line.
        right: columns set flush right.
    """
    cells = [[str(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)] if cells else []
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def in_bytes(count: float) -> str:
    """A size for people: "97.3 MB", in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(_plain(inner) for inner in value)
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return str(value) if isinstance(value, Path) else value
