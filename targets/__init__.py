"""What hardware is. Import as ``awq_tvm.targets``."""

from __future__ import annotations

if __name__ != "awq_tvm.targets":
    raise ImportError(
        f"import awq_tvm.targets, not {__name__}: under two names there would be two registries"
    )

from awq_tvm.targets.description import Target, missing_features
from awq_tvm.targets.detection import detect, with_host_here
from awq_tvm.targets.registry import ALIASES, all_targets, register, resolve

__all__ = [
    "ALIASES",
    "Target",
    "all_targets",
    "detect",
    "missing_features",
    "register",
    "resolve",
    "with_host_here",
]
