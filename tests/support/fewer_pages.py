"""A bundle's executor that runs out of pages: bundles are compiled with enough for all of their sequences."""

from __future__ import annotations

from typing import Any

from awq_tvm.runtime.executor import Executor


class FewerPages:
    """The executor with fewer pages than it has."""

    def __init__(self, executor: Executor, pages: int) -> None:
        self._executor, self._hidden = executor, executor.free_pages - pages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    @property
    def free_pages(self) -> int:
        return self._executor.free_pages - self._hidden
