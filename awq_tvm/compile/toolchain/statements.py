"""Walking the statements of a PrimFunc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx


def inner_statements(statement: Any) -> Iterator[Any]:
    """What a statement is made of, in order; nothing of one that holds no others."""
    if isinstance(statement, tirx.SeqStmt):
        yield from statement.seq
    for name in ("body", "then_case", "else_case"):
        inner = getattr(statement, name, None)
        if inner is not None:
            yield inner
