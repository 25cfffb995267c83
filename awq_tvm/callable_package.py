"""Packages that are also the function of their name: `awq_tvm.quantize(...)` beside `awq_tvm.quantize.options`.

Python lets a module change its class (https://docs.python.org/3/reference/datamodel.html, "Customizing module
attribute access"). Type checkers see the function that `awq_tvm/__init__.py` imports for them.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is one of `awq_tvm.api`'s."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function of `awq_tvm.api` that has the package's name."""
        return self._function()(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """What the function takes, for `help` and editors."""
        return inspect.signature(self._function())

    def _function(self) -> Any:
        # By name: the API stands on this package, and is only read once it is asked for.
        return getattr(import_module("awq_tvm.api"), self.__name__.rpartition(".")[2])


def make_callable(name: str) -> None:
    """Let the package of this name, which is being imported, be called."""
    sys.modules[name].__class__ = CallablePackage
