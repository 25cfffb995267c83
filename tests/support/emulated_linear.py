"""One linear of a GPU's bundle, called alone by the library's own function for it, with the bundle's weights.

Kernels for thousands of tokens are reached so: a model reads fewer at once, and a test cannot wait for that many.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from awq_tvm.bundle.reader import Bundle
from awq_tvm.runtime.executor import Executor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Linear:
    """y = x @ W.T, or residual + x @ W.T, of random float16 numbers; of gate and up, silu(x @ gate.T) * (x @ up.T).

    Attributes:
        modules: whose weights, one below the other, are W.
        out_features: N.
        in_features: K.
        has_residual: whether one is added.
        is_gated: whether W is gate and up, one below the other.
        tokens: M.
    """

    modules: tuple[str, ...]
    out_features: int
    in_features: int
    has_residual: bool
    is_gated: bool
    tokens: int

    @property
    def y_features(self) -> int:
        """Columns of y."""
        return self.out_features // 2 if self.is_gated else self.out_features

    def inputs(self) -> list[Array]:
        """x, and the residual if there is one."""
        random = np.random.default_rng(self.tokens)
        widths = [self.in_features, self.out_features][: 1 + self.has_residual]
        return [random.standard_normal((self.tokens, width)).astype(np.float16) for width in widths]


def call_alone(bundle: Bundle, executor: Executor, linear: Linear) -> Array:
    """y, [M, N], float16; nothing but this linear is launched."""
    tvm, prefix = executor._tvm, "+".join(linear.modules) + "."
    named = zip(bundle.manifest.parameters, executor._weights, strict=True)
    weights = [array for name, array in named if name.startswith(prefix)]
    y = tvm.tensor(np.full((linear.tokens, linear.y_features), np.nan, np.float16))
    x, *residual = map(tvm.tensor, linear.inputs())
    library = tvm._ffi.load_module(str(bundle.library))
    (source,) = bundle.path.glob("kernels.[cm][ue]*")
    refused = []
    for function in sorted(set(re.findall(r"(dequantize_matmul\d*)_kernel", source.read_text()))):
        try:
            library.get_function(function, query_imports=True)(x, *weights, *residual, y)
        except (TypeError, ValueError) as other:  # of another shape
            refused.append(other)
            continue
        found = np.empty((linear.tokens, linear.y_features), np.float16)
        tvm._read(y, found.ctypes.data_as(ctypes.c_void_p), found.nbytes)
        return found
    raise AssertionError(f"no function takes {linear}: {refused}")
