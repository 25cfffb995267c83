"""awq_tvm: activation-aware 4-bit quantization, compiled by TVM for every device."""

__version__ = "0.1.0"
