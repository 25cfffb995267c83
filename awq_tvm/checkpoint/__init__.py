"""Read any checkpoint safely, write quantized ones: see docs/architecture.md, "checkpoint"."""

from __future__ import annotations

from awq_tvm.checkpoint.base import Checkpoint, QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.open import open_checkpoint

__all__ = ["Checkpoint", "QuantizationScheme", "QuantizedWeight", "TensorInfo", "open_checkpoint"]
