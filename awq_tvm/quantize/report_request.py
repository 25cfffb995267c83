"""A report that was asked for: refused before the run where it cannot be made, filled and written after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from awq_tvm.checkpoint import Checkpoint, open_checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressCallback
from awq_tvm.quantize.report import QuantizeReport
from awq_tvm.quantize.report_document import report_document
from awq_tvm.quantize.report_page import check_report, write_report
from awq_tvm.quantize.report_text import ReportText, choose_report_text

_CALIBRATED_ON_IT = (
    "the text that was scored ({source}) is the calibration text: the figures flatter the quantized model; "
    "--report-text FILE names another"
)
_NOTHING_SCORED = (
    "nothing was scored: the help topics, which are scored where no text is named, are the calibration text; "
    "--report-text FILE names another"
)


@dataclass(frozen=True)
class ReportRequest:
    """Where the report goes, and what it scores.

    Attributes:
        folder: to make.
        text: to score; None for nothing.
    """

    folder: Path
    text: ReportText | None

    def measure(
        self, report: QuantizeReport, written: Path, original: Checkpoint, progress: ProgressCallback
    ) -> QuantizeReport:
        """Score the checkpoint that was written.

        Args:
            report: of the run so far.
            written: the folder of the quantized checkpoint.
            original: what it was made from.
            progress: told after every block that is scored.

        Returns:
            The report with the scores, or with a warning that there are none.
        """
        if self.text is None:
            return replace(report, warnings=(*report.warnings, _NOTHING_SCORED))
        if self.text.is_calibration_text:
            warning = _CALIBRATED_ON_IT.format(source=self.text.source)
            report = replace(report, warnings=(*report.warnings, warning))
        quality = self.text.score(open_checkpoint(str(written)), original, progress)
        return replace(report, quality=quality)

    def write(
        self, report: QuantizeReport, *, model: str, model_type: str, recipe: Mapping[str, Any]
    ) -> None:
        """Write the folder; arguments as of `report_document`.

        Raises:
            ResourceError: it exists by now, or cannot be written.
        """
        write_report(self.folder, report_document(report, model=model, model_type=model_type, recipe=recipe))


def request_report(
    folder: Path | None,
    text: Path | None,
    *,
    out: Path,
    checkpoint: Checkpoint,
    calibration: str | None,
    context: int,
) -> ReportRequest | None:
    """Check what was asked for, before any work is done.

    Args:
        folder: of the report; None for no report.
        text: to score; None for the usual one.
        out: the quantized checkpoint of the same run.
        checkpoint: the model.
        calibration: what is calibrated on, as `choose_report_text` takes it.
        context: tokens in a window of the text.

    Raises:
        UsageError: a text without a report, one folder for both, a text that cannot be scored.
        ResourceError: the folder exists or cannot be written, or matplotlib is missing.
        CheckpointError: the model's tokenizer is missing or makes tokens that it does not have.
    """
    if folder is None:
        if text is not None:
            raise UsageError(
                "There is no report to score a text for",
                where="--report-text",
                why=f"found {text}, but no --report",
                fix="--report DIR",
            )
        return None
    check_report(folder, out)
    return ReportRequest(folder, choose_report_text(checkpoint, text, calibration, context))
