"""Texts that are kept under tests/golden, so that a change of what is generated shows as a diff to be reviewed."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

MOST_LINES = 60
"""Of a diff that is shown."""


def compare(path: Path, text: str, *, update: bool) -> None:
    """Fail with the diff where the file does not hold ``text``, or write it there if ``update``."""
    if update:
        path.write_text(text, encoding="utf-8")
        return
    if not path.is_file():
        pytest.fail(f"{path.name} is not in tests/golden: run this test with --update-golden", pytrace=False)
    kept = path.read_text(encoding="utf-8")
    if kept == text:
        return
    diff = list(
        difflib.unified_diff(
            kept.splitlines(), text.splitlines(), f"golden/{path.name}", "generated", lineterm=""
        )
    )
    more = [f"... and {len(diff) - MOST_LINES} more lines"] if len(diff) > MOST_LINES else []
    wanted = "if this is what you want, run the test with --update-golden and commit the file"
    pytest.fail("\n".join([*diff[:MOST_LINES], *more, wanted]), pytrace=False)
