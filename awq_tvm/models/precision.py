"""In which number formats a model's weights are stored and its activations computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from awq_tvm.checkpoint.base import PER_CHANNEL
from awq_tvm.schedules.spec import MatmulSpec


@dataclass(frozen=True)
class QuantizedShape:
    """Bits and group size of one quantized weight of the checkpoint; -1 is one group a row.

    Where ``act_order`` is set, the channels of a group need not be neighbours in the checkpoint.
    """

    bits: int
    group_size: int
    act_order: bool = False


@dataclass(frozen=True)
class Precision:
    """Number formats of one compiled model.

    Args:
        dtype: activations, "float32", "float16" or "bfloat16".
        weight_dtype: unquantized matrices as stored, "float16", "bfloat16" or "float32".
        activations: "float" or "int8", how quantized linears read their input.
        quantized: by checkpoint name of the linear.
        cache_dtype: of queries, keys and values in attention, and so of the KV cache; None for ``dtype``.
        int8_cache: whether the KV cache keeps them as int8 instead.
    """

    dtype: str
    weight_dtype: str
    activations: str = "float"
    quantized: Mapping[str, QuantizedShape] = field(default_factory=dict)
    cache_dtype: str | None = None
    int8_cache: bool = False

    @property
    def attention_dtype(self) -> str:
        """What attention reads and writes, "float32", "float16" or "bfloat16"."""
        return self.cache_dtype or self.dtype

    @property
    def kv_cache(self) -> str:
        """What cached keys and values are kept in, "float32", "float16", "bfloat16" or "int8"."""
        return "int8" if self.int8_cache else self.attention_dtype

    def spec(self, name: str, in_features: int, out_features: int) -> MatmulSpec | None:
        """The spec of the linear ``name``, or None where the checkpoint holds it unquantized."""
        return self.quantized_spec(name, in_features, out_features) if name in self.quantized else None

    def act_order(self, name: str) -> bool:
        """Whether the inputs of the linear ``name`` must be put in the order of its groups."""
        return name in self.quantized and self.quantized[name].act_order

    def quantized_spec(self, name: str, in_features: int, out_features: int) -> MatmulSpec:
        """The spec of the quantized linear ``name``.

        Raises:
            KeyError: the checkpoint holds it unquantized.
        """
        shape = self.quantized[name]
        return MatmulSpec(
            in_features=in_features,
            out_features=out_features,
            bits=shape.bits,
            group_size=in_features if shape.group_size == PER_CHANNEL else shape.group_size,
            dtype=self.dtype,
            activations=self.activations,
        )
