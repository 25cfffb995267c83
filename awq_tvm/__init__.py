"""awq_tvm: activation-aware 4-bit quantization, compiled by TVM for every device.

`quantize`, `compile` and `load` are the command line's verbs in Python, see `awq_tvm.api`. Nothing heavy is imported
before one of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awq_tvm.api import compile, load, quantize

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load", "quantize"]


def __getattr__(name: str) -> Any:
    """`load` from the API; `quantize` and `compile` are packages that can be called."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("awq_tvm.api").load if name == "load" else import_module(f"awq_tvm.{name}")
