"""TensorIR schedules per hardware. Import as ``awq_tvm.schedules``."""

from __future__ import annotations

if __name__ != "awq_tvm.schedules":
    raise ImportError(f"import awq_tvm.schedules, not {__name__}: two names would make two registries")
