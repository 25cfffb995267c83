"""Read any checkpoint safely, write quantized ones: see docs/architecture.md, "checkpoint"."""

from __future__ import annotations

from awq_tvm.checkpoint.base import PER_CHANNEL, Checkpoint, QuantizationScheme, QuantizedWeight, TensorInfo
from awq_tvm.checkpoint.export import export_checkpoint
from awq_tvm.checkpoint.gguf_write import write_gguf
from awq_tvm.checkpoint.open import open_checkpoint
from awq_tvm.checkpoint.scheme_fit import check_linears_fit, check_scheme_fits, linears_to_quantize
from awq_tvm.checkpoint.write import write_quantized_checkpoint

__all__ = [
    "PER_CHANNEL",
    "Checkpoint",
    "QuantizationScheme",
    "QuantizedWeight",
    "TensorInfo",
    "check_linears_fit",
    "check_scheme_fits",
    "export_checkpoint",
    "linears_to_quantize",
    "open_checkpoint",
    "write_gguf",
    "write_quantized_checkpoint",
]
