"""`report.json`: everything a run says of itself, as JSON values. The page is drawn from the same values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from awq_tvm import __version__
from awq_tvm.quantize.report import QuantizeReport

SCHEMA_VERSION = 1


def report_document(
    report: QuantizeReport, *, model: str, model_type: str, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of `report.json`; a figure that is not finite is None.

    Args:
        report: of the run.
        model: name of the original, as the user typed it, without a path.
        model_type: of its config.
        recipe: what `recipe.json` in the checkpoint has.
    """
    document: dict[str, Any] = _finite(
        {
            "schema_version": SCHEMA_VERSION,
            "awq_tvm": __version__,
            "model": model,
            "model_type": model_type,
            "recipe": {**recipe, "calibration_tokens": report.calibration_tokens},
            "bytes_before": report.bytes_before,
            "bytes_after": report.bytes_after,
            "seconds": report.seconds,
            "peak_memory_bytes": report.peak_memory_bytes,
            "quality": None if report.quality is None else asdict(report.quality),
            "blocks": [asdict(block) for block in report.blocks],
            "warnings": list(report.warnings),
        }
    )
    return document


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
