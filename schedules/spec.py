"""What a fused quantized matmul computes, apart from how."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from awq_tvm.errors import UnsupportedError

LEGAL_BITS = (2, 3, 4, 8)
LEGAL_ACTIVATION_FUNCTIONS = ("silu", "gelu", "gelu_tanh", "relu")


@dataclass(frozen=True)
class MatmulSpec:
    """y[M, N] = residual[M, N] + f(g(x)[M, K] @ W[N, K].T + bias[N]), W dequantized by group.

    W[n, k] = (q[n, k] - z[n, k // group_size]) * s[n, k // group_size].

    Where the outputs are gated, they are the products of neighbouring sums, and y is [M, N / 2]:
    y[m, j] = f(sum[m, 2 j]) * sum[m, 2 j + 1].

    The PrimFunc's parameters stand in this order: x, the layout's weight arrays, norm (if any), bias (if any),
    residual (if any), y. M is dynamic.

    Args:
        in_features: K.
        out_features: N.
        bits: width of a code q, one of 2, 3, 4, 8.
        group_size: k per scale and zero point; divides K.
        dtype: of x, bias, residual and y, "float32", "float16" or "bfloat16".
        has_bias: whether bias[N] is added.
        activation_function: None, or the elementwise function f.
        has_residual: whether residual[M, N] is added last.
        activations: "float" (g(x) is used as it is) or "int8" (it is quantized to int8 per token and group first).
        rms_norm_eps: None, or g(x) = norm[K] * x / sqrt(mean(x^2) + rms_norm_eps), the mean over a row.
        gate: None, or the elementwise function of g(x) = gate(x[:, :K]) * x[:, K:], for which x is [M, 2 K].
        output_gate: None, or the elementwise function f of gated outputs.

    Raises:
        UnsupportedError: a field is outside what is listed here.
    """

    in_features: int
    out_features: int
    bits: int
    group_size: int
    dtype: str
    has_bias: bool = False
    activation_function: str | None = None
    has_residual: bool = False
    activations: str = "float"
    rms_norm_eps: float | None = None
    gate: str | None = None
    output_gate: str | None = None

    def __post_init__(self) -> None:
        """Prove the fields consistent."""
        where = f"{self.out_features}x{self.in_features} linear"
        if self.bits not in LEGAL_BITS:
            raise UnsupportedError(
                f"{self.bits}-bit weights have no kernel",
                where=where,
                fix=f"quantize with one of {', '.join(map(str, LEGAL_BITS))} bits",
            )
        if self.group_size <= 0 or self.in_features % self.group_size:
            raise UnsupportedError(
                f"group size {self.group_size} does not divide in_features {self.in_features}", where=where
            )
        if self.activation_function not in (None, *LEGAL_ACTIVATION_FUNCTIONS):
            raise UnsupportedError(f"no fused {self.activation_function} epilogue", where=where)
        for gate in (self.gate, self.output_gate):
            if gate not in (None, *LEGAL_ACTIVATION_FUNCTIONS):
                raise UnsupportedError(f"no fused {gate} gate", where=where)
        if self.output_gate is not None:
            if self.out_features % 2:
                raise UnsupportedError("an odd number of sums cannot be gated in pairs", where=where)
            if self.has_bias or self.activation_function or self.has_residual:
                raise UnsupportedError("no kernel does more with its sums than to gate them", where=where)
        if self.gate is not None and self.rms_norm_eps is not None:
            raise UnsupportedError("no kernel both gates and normalises its input", where=where)
        if self.activations not in ("float", "int8"):
            raise UnsupportedError(f"unknown activation mode {self.activations!r}", where=where)

    @property
    def groups(self) -> int:
        """Number of groups along K."""
        return self.in_features // self.group_size

    @property
    def has_prologue(self) -> bool:
        """Whether something is done to x before the product."""
        return self.rms_norm_eps is not None or self.gate is not None

    @property
    def x_features(self) -> int:
        """Columns of x."""
        return self.in_features if self.gate is None else 2 * self.in_features

    @property
    def sums_per_output(self) -> int:
        """How many neighbouring sums make a column of y: two where outputs are gated."""
        return 1 if self.output_gate is None else 2

    @property
    def y_features(self) -> int:
        """Columns of y."""
        return self.out_features // self.sums_per_output

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys; a prologue or gate is named only where there is one."""
        fields = asdict(self)
        for name in ("rms_norm_eps", "gate", "output_gate"):
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> MatmulSpec:
        """Read back what ``to_json`` wrote."""
        return MatmulSpec.from_dict(json.loads(text))

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> MatmulSpec:
        """Read back what ``asdict`` made of it."""
        return MatmulSpec(**fields)


@dataclass(frozen=True)
class DenseSpec:
    """y[M, N] = x[M, K] @ W[N, K].T with an unquantized W; the parameters stand in the order x, W, y.

    Args:
        in_features: K.
        out_features: N.
        weight_dtype: of W.
        dtype: of x and y.
    """

    in_features: int
    out_features: int
    weight_dtype: str
    dtype: str

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> DenseSpec:
        """Read back what ``to_json`` wrote."""
        return DenseSpec.from_dict(json.loads(text))

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> DenseSpec:
        """Read back what ``asdict`` made of it."""
        return DenseSpec(**fields)
