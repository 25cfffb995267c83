"""Layers that every model family shares, as Relax nn modules over flattened tokens [n, features]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.core import wrap_nested

from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.reference import dequantize
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from awq_tvm.models.precision import Precision


def take_rows(table: nn.Tensor, indices: nn.Tensor) -> nn.Tensor:
    """table[indices] along axis 0; an index out of range reads the nearest row, never foreign memory."""
    return wrap_nested(relax.op.take(table._expr, indices._expr, axis=0, mode="clip"), "take")


def take_columns(x: nn.Tensor, indices: nn.Tensor) -> nn.Tensor:
    """x[:, indices], with indices out of range as in ``take_rows``."""
    return wrap_nested(relax.op.take(x._expr, indices._expr, axis=1, mode="clip"), "take")


class Linear(nn.Module):
    """y[n, out] = x[n, in] @ W[out, in].T + bias[out], W unquantized."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, weight_dtype: str, dtype: str
    ) -> None:
        """Declare the parameters; ``weight_dtype`` is what W is stored in, ``dtype`` what is computed in."""
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter((out_features, in_features), weight_dtype)
        self.bias = nn.Parameter((out_features,), dtype) if bias else None

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """Apply to x[n, in]."""
        weight = self.weight if self.weight.dtype == self.dtype else op.astype(self.weight, self.dtype)
        y = op.matmul(x, op.permute_dims(weight, [1, 0]))
        return y if self.bias is None else op.add(y, self.bias)


class QuantizedLinear(nn.Module):
    """A linear whose weight is a dequantize PrimFunc over codes, scales and zero points.

    The weight of one that was quantized in activation order has its columns put side by side, group by group, when
    it is packed; its inputs are gathered in the same order.
    """

    def __init__(self, spec: MatmulSpec, *, bias: bool, act_order: bool = False) -> None:
        """Declare the arrays of the row layout, in which every model is exported."""
        super().__init__()
        self.spec = spec
        layout = LAYOUTS["row"]
        for array in layout.arrays(spec):
            setattr(self, array.suffix, nn.Parameter(array.shape, array.dtype))
        self.bias = nn.Parameter((spec.out_features,), spec.dtype) if bias else None
        self.input_order = nn.Parameter((spec.in_features,), "int32") if act_order else None

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """Apply to x[n, in]."""
        if self.input_order is not None:
            x = take_columns(x, self.input_order)
        layout, shape = LAYOUTS["row"], (self.spec.out_features, self.spec.in_features)
        weight = op.tensor_ir_op(
            dequantize(self.spec, layout),
            "dequantize",
            [getattr(self, array.suffix) for array in layout.arrays(self.spec)],
            nn.Tensor.placeholder(shape, self.spec.dtype),
        )
        y = op.matmul(x, op.permute_dims(weight, [1, 0]))
        return y if self.bias is None else op.add(y, self.bias)


class Embedding(nn.Module):
    """Rows of W[vocab, features] by token id."""

    def __init__(self, vocab_size: int, features: int, *, weight_dtype: str, dtype: str) -> None:
        """Declare W."""
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter((vocab_size, features), weight_dtype)

    def forward(self, token_ids: nn.Tensor) -> nn.Tensor:
        """Look up token_ids[n] -> [n, features]."""
        rows = take_rows(self.weight, token_ids)
        return rows if self.weight.dtype == self.dtype else op.astype(rows, self.dtype)

    def project(self, x: nn.Tensor) -> nn.Tensor:
        """Use W as the output head: x[n, features] -> [n, vocab]."""
        weight = self.weight if self.weight.dtype == self.dtype else op.astype(self.weight, self.dtype)
        return op.matmul(x, op.permute_dims(weight, [1, 0]))


class QuantizedEmbedding(nn.Module):
    """Rows of a quantized W[vocab, features] by token id; also the output head where the two are tied."""

    def __init__(self, spec: MatmulSpec) -> None:
        """Declare the arrays of the row layout."""
        super().__init__()
        self.spec = spec
        for array in LAYOUTS["row"].arrays(spec):
            setattr(self, array.suffix, nn.Parameter(array.shape, array.dtype))

    def _arrays(self) -> list[nn.Parameter]:
        return [getattr(self, array.suffix) for array in LAYOUTS["row"].arrays(self.spec)]

    def forward(self, token_ids: nn.Tensor) -> nn.Tensor:
        """Look up token_ids[n] -> [n, features]."""
        shape = (self.spec.out_features, self.spec.in_features)
        table = op.tensor_ir_op(
            dequantize(self.spec, LAYOUTS["row"]),
            "dequantize",
            self._arrays(),
            nn.Tensor.placeholder(shape, self.spec.dtype),
        )
        return take_rows(table, token_ids)

    project = QuantizedLinear.forward
    bias = None
    input_order = None


class RMSNorm(nn.Module):
    """x * weight / sqrt(mean(x^2) + eps) over the last axis, computed in float32."""

    def __init__(self, features: int, eps: float, dtype: str) -> None:
        """Declare the weight."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter((features,), dtype)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """Normalise x[..., features]."""
        return op.rms_norm(x, self.weight, axes=-1, epsilon=self.eps)


def make_linear(
    name: str, in_features: int, out_features: int, *, bias: bool, precision: Precision
) -> Linear | QuantizedLinear:
    """A quantized linear where the checkpoint has one under ``name``, a plain one elsewhere."""
    spec = precision.spec(name, in_features, out_features)
    if spec is not None:
        return QuantizedLinear(spec, bias=bias, act_order=precision.act_order(name))
    return Linear(
        in_features, out_features, bias=bias, weight_dtype=precision.weight_dtype, dtype=precision.dtype
    )
