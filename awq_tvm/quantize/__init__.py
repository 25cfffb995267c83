"""Quantize a checkpoint in PyTorch, and score one: the only package that imports torch.

Called, it is `awq_tvm.api.quantize`.
"""

from __future__ import annotations

from awq_tvm.callable_package import make_callable

make_callable(__name__)
