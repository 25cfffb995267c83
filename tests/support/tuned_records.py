"""Tuned records for tests."""

from __future__ import annotations

from typing import Any

from awq_tvm.compile.tuning.record import KernelKey, Measured, Times, TunedRecord


def key_of(**fields: Any) -> KernelKey:
    """A key of the integer family on x86, with other fields where they are given."""
    usual: dict[str, Any] = {
        "op": "dequantize_matmul",
        "target": "x86-0123456789ab",
        "rule": "x86.int8",
        "rule_version": 1,
        "layout": "paired_blocks",
        "weights": "codes",
        "bits": 4,
        "group_size": 64,
        "activations": "int8",
        "in_features": 576,
        "out_features": 960,
        "rows": "1",
    }
    return KernelKey(**{**usual, **fields})


def record_of(
    config: dict[str, Any] | None = None,
    *,
    at: str = "2026-11-26T12:00:00Z",
    cold: float = 8.0,
    trials: int = 10,
    **fields: Any,
) -> TunedRecord:
    """A record of such a key."""
    return TunedRecord(
        key=key_of(**fields),
        config=config or {"one_row": {"rows": 1, "blocks": 2, "sums": 2, "ahead": 4096}},
        microseconds=Times(cold=cold, hot=2.0),
        default_microseconds=Times(cold=10.0, hot=2.5),
        measured=Measured(
            at=at,
            by="local",
            machine="a test",
            threads=1,
            rows=(1,),
            trials=trials,
            load=0.5,
            tvm="0.27.0.post1",
        ),
    )
