"""From where a target can be measured, in words for errors."""

from __future__ import annotations

from awq_tvm.bundle.machine import operating_system
from awq_tvm.targets import Target


def way_to_measure(target: Target) -> str:
    """What to do instead, for who asks for a target that cannot be measured as they asked."""
    if target.kind == "metal":
        return "leave it: nothing measures Apple's GPUs yet, and `compile` takes the default tiles for them"
    if target.kind == "cuda":
        return "`tune --pack FILE` makes a file that the GPU's machine runs (docs/tuning-devices.md)"
    if operating_system(str(target.tvm_target.get("mtriple", ""))) == "linux":
        return "run `tune` there, or here with --rpc or --pack (docs/tuning-devices.md)"
    return "run `tune` there"
