"""What is made once, before the first block or behind the last, and kept in the journal for a run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.progress import ProgressCallback, ProgressEvent
from awq_tvm.quantize.bit_allocation import allocate
from awq_tvm.quantize.calibration import Calibration, calibrate
from awq_tvm.quantize.device import placed, taken_back
from awq_tvm.quantize.final_norm import NormReport, learn_final_norm
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.sensitivity import measure_sensitivities


def calibration_text(
    journal: Journal, checkpoint: Checkpoint, wanted: Mapping[str, Any], progress: ProgressCallback
) -> Calibration:
    """The calibration text: the journal's if an earlier run made it, else made now and kept there."""
    kept = journal.read_text()
    values: dict[str, Any]
    if kept is not None:
        values = {**kept[0], **kept[1]}
        text = Calibration(**{**values, "warnings": tuple(values["warnings"])})
    else:
        progress(ProgressEvent("calibrate", 0, 1, wanted["calibration"]))
        text = calibrate(checkpoint, **wanted, progress=progress)
        values = {field.name: getattr(text, field.name) for field in fields(text)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        journal.record_text(arrays, {name: value for name, value in values.items() if name not in arrays})
    progress(ProgressEvent("calibrate", 1, 1, f"{text.token_ids.size} tokens from {text.source}"))
    return text


def bit_widths(
    journal: Journal,
    checkpoint: Checkpoint,
    text: Calibration,
    rounding: Rounding,
    budget: float,
    options: AwqOptions,
    progress: ProgressCallback,
) -> dict[str, int]:
    """The bit width of every linear, chosen once; a resumed run goes on with what the journal has."""
    if journal.widths is None:
        sensitivities = measure_sensitivities(
            checkpoint,
            text.token_ids,
            rounding,
            options=options,
            progress=progress,
            loss_mask=text.loss_mask,
        )
        journal.record_widths(allocate(sensitivities, budget, symmetric=rounding.symmetric))
    return journal.widths or {}


def keep_final_norm(
    journal: Journal,
    checkpoint: Checkpoint,
    text: Calibration,
    options: AwqOptions,
    seed: int,
    progress: ProgressCallback,
) -> NormReport:
    """Put into the journal what the norm before the head becomes, once all blocks are finished."""
    kept = journal.read_ending()
    if kept is not None:
        return NormReport(**kept[1])
    leaving = journal.read_hidden()
    weights, report = learn_final_norm(
        checkpoint,
        placed(text.token_ids),
        placed(text.loss_mask),
        leaving[FULL],
        leaving[QUANTIZED],
        steps=options.learn_norm_steps,
        rate=options.learn_norm_rate,
        seed=seed,
        progress=progress,
    )
    journal.record_ending({name: taken_back(weight) for name, weight in weights.items()}, asdict(report))
    return report
