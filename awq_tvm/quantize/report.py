"""What a quantization run says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from awq_tvm.quantize.activations import FEWEST_TOKENS_OF_AN_EXPERT
from awq_tvm.quantize.block_stream import BlockReport
from awq_tvm.quantize.final_norm import NormReport
from awq_tvm.quantize.report_text import Quality


@dataclass(frozen=True)
class QuantizeReport:
    """What a run did.

    Attributes:
        out: the folder that was written.
        method: "awq", "awq+" or "rtn".
        bits: of a weight; of most linears, if they differ.
        budget: bits a weight that were allowed on average; None where all have the same.
        widths: bits by name of the linear, None where all have the same.
        vocabulary: bits by name of the embedding and the head, where they are quantized.
        group_size: inputs that share a scale.
        symmetric: every zero point is 2 ** (bits - 1).
        bytes_before: of the model's weights as they were stored.
        bytes_after: of the weights that were written.
        seconds: the whole run took; with `resume`, since it was resumed.
        blocks: how each block fared.
        calibration_source: where the text is from; None for rtn.
        calibration_sha256: of the token ids; None for rtn.
        calibration_tokens: how many; 0 for rtn.
        peak_memory_bytes: of this process.
        warnings: what the user should know.
        quality: what was measured on a text, None where that was not asked for.
        norm: what fitting the norm before the head did; None where it was not fitted.
    """

    out: Path
    method: str
    bits: int
    budget: float | None
    widths: Mapping[str, int] | None
    vocabulary: Mapping[str, int]
    group_size: int
    symmetric: bool
    bytes_before: int
    bytes_after: int
    seconds: float
    blocks: tuple[BlockReport, ...]
    calibration_source: str | None
    calibration_sha256: str | None
    calibration_tokens: int
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()
    quality: Quality | None = None
    norm: NormReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "out": str(self.out)}


def warnings_about_experts(blocks: Sequence[BlockReport]) -> tuple[str, ...]:
    """What the user should know of experts that the calibration text hardly asked; empty where all were asked."""
    short = sum(block.short_experts for block in blocks)
    if not short:
        return ()
    concerned = sum(block.short_experts > 0 for block in blocks)
    return (
        f"{short} experts in {concerned} of {len(blocks)} blocks were chosen for fewer than "
        f"{FEWEST_TOKENS_OF_AN_EXPERT} calibration tokens each; they were measured on all tokens instead",
    )
