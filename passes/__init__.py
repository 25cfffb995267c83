"""Passes over the Relax module. Import as ``awq_tvm.passes``."""

from __future__ import annotations

if __name__ != "awq_tvm.passes":
    raise ImportError(f"import awq_tvm.passes, not {__name__}: two names would make two registries")
