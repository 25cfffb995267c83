"""How the threads of a block divide work that is the same for each number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm.script.ir_builder import tirx as T


def shared_out(count: int, thread: Any, threads: int) -> Iterator[Any]:
    """Yield expressions of this thread's numbers below ``count``, under an if where not every thread has one."""
    for first in range(0, count, threads):
        if first + threads <= count:
            yield first + thread
        else:
            with T.If(thread < count - first), T.Then():
                yield first + thread
