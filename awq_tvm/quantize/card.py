"""The README.md of a quantized checkpoint: what it is, how it was made, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING

from awq_tvm import __version__
from awq_tvm.checkpoint import PER_CHANNEL
from awq_tvm.quantize.options import AwqOptions

if TYPE_CHECKING:
    from awq_tvm.quantize.report import QuantizeReport
    from awq_tvm.quantize.report_text import Quality


def model_card(name: str, model_type: str, report: QuantizeReport, options: AwqOptions) -> str:
    """Write the card.

    Args:
        name: of the model it was made from, as the user typed it, without a path.
        model_type: of its config.
        report: of the run.
        options: of the search.

    Returns:
        Markdown.
    """
    symmetry = "symmetric" if report.symmetric else "asymmetric"
    groups = "rows" if report.group_size == PER_CHANNEL else f"groups of {report.group_size} inputs"
    recipe = [
        f"- method: {report.method}",
        f"- bits: {_bits(report)}, {symmetry}, {groups}, scales in float16",
        f"- quantized: {_quantized(report.vocabulary)}",
    ]
    if report.calibration_sha256 is not None:
        recipe += [
            f"- calibration: {report.calibration_tokens} tokens from {report.calibration_source}",
            f"- SHA-256 of the calibration tokens: `{report.calibration_sha256}`",
            "- search: " + ", ".join(f"{key} {value}" for key, value in asdict(options).items()),
        ]
    measured = [f"- weights of the original, as stored: {report.bytes_before:,} bytes"]
    losses = [
        (block.loss_before, block.loss_after)
        for block in report.blocks
        if block.loss_before is not None and block.loss_after is not None
    ]
    if losses:
        before, after = (fmean(pair[side] for pair in losses) for side in (0, 1))
        measured.append(
            "- mean squared change of a block's output on the calibration text, "
            f"mean over {len(losses)} blocks: {before:.4g} by rounding to nearest, {after:.4g} as written"
        )
    if report.norm is not None:
        measured.append(
            "- KL divergence from the original on calibration text that was not learned from: "
            f"{report.norm.before:.4g} nats a token with the original's last norm, {report.norm.after:.4g} with one "
            f"fitted to the quantized blocks, which was {'kept' if report.norm.kept else 'not kept'}"
        )
    if report.quality is not None:
        measured += _measured_on_text(report.quality)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"tags: [{model_type}, quantized, {report.bits}-bit, {report.method}]",
            "---",
            "",
            f"# {name}, {_bits(report)} bits a weight",
            "",
            f"Made from `{name}` by awq_tvm {__version__}. To compare it with the original:",
            "`python -m awq_tvm eval FOLDER --text FILE --reference ORIGINAL`.",
            "",
            "## Recipe",
            "",
            *recipe,
            "",
            "## Measured",
            "",
            *measured,
            "",
            *(() if report.widths is None else ("## Bit widths", "", *_widths(report.widths), "")),
        ]
    )


def _measured_on_text(quality: Quality) -> list[str]:
    remark = ", the calibration text itself" if quality.is_calibration_text else ""
    return [
        f"- scored on {quality.text}{remark}: {quality.tokens:,} tokens, windows of {quality.context}",
        f"- perplexity: {quality.perplexity_before:.4f} of the original, {quality.perplexity_after:.4f} quantized",
        f"- KL divergence from the original: {quality.kl_divergence:.5f} nats a token",
        f"- both rank the same token first: {quality.top1_agreement:.4f} of the tokens",
    ]


def _quantized(vocabulary: Mapping[str, int]) -> str:
    if not vocabulary:
        return "the linears of the blocks; embedding, norms and head are float16"
    named = ", ".join(f"`{name}` ({bits} bits, rounded to nearest)" for name, bits in vocabulary.items())
    return f"the linears of the blocks, {named}; all else is float16"


def _bits(report: QuantizeReport) -> str:
    return str(report.bits) if report.budget is None else f"{report.budget:g} on average"


def _widths(widths: Mapping[str, int]) -> list[str]:
    """For each linear of a block the blocks that have it with 2 bits, with 3 and so on."""
    blocks: dict[str, dict[int, list[str]]] = {}
    for name, bits in widths.items():
        parts = name.split(".")
        index = next(at for at, part in enumerate(parts) if part.isdigit())
        blocks.setdefault(".".join(parts[index + 1 :]), {}).setdefault(bits, []).append(parts[index])
    return [
        f"- `{linear}`: "
        + "; ".join(f"{bits} bits in {', '.join(found)}" for bits, found in sorted(by_bits.items()))
        for linear, by_bits in blocks.items()
    ]
