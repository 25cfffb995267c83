"""TensorIR schedules per hardware. Import as ``awq_tvm.schedules``."""
