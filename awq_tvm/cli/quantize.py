"""`quantize MODEL -o DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from awq_tvm.cli.options import Json, Model
from awq_tvm.cli.output import in_bytes, print_json, say
from awq_tvm.cli.progress_bar import ProgressDisplay
from awq_tvm.errors import UsageError

STEPS = "Steps of the method"


def command(
    model: Model,
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", show_default=False, help="The folder to make.")
    ],
    method: Annotated[
        str, typer.Option(help="awq+; awq, ten times as fast and less exact; or rtn for rounding to nearest.")
    ] = "awq+",
    bits: Annotated[
        str, typer.Option(help="Bits of a weight; or auto:3.5, so many on average, chosen by linear.")
    ] = "4",
    group_size: Annotated[str, typer.Option(help="Inputs that share a scale: auto or a number.")] = "auto",
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="No zero points: fixed in the middle.")
    ] = False,
    quantize_embedding: Annotated[
        int | None, typer.Option(metavar="BITS", help="Quantize the embedding too, with 8 or 4 bits.")
    ] = None,
    quantize_lm_head: Annotated[
        int | None, typer.Option(metavar="BITS", help="Quantize the head too, with 8 or 4 bits.")
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            help="Text to calibrate on: default, self, topics, a FILE (text or .jsonl), or hf:NAME."
        ),
    ] = "default",
    samples: Annotated[
        int | None, typer.Option(help="Samples of calibration text; 64, with awq 16, if not given.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens of each sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the places where the text is cut.")] = 0,
    device: Annotated[
        str, typer.Option(help="Where PyTorch works: auto for a CUDA GPU if there is one, cpu, cuda, cuda:1.")
    ] = "auto",
    scale_steps: Annotated[
        int | None, typer.Option(help="Steps of the grid of scales; 0 for none.", rich_help_panel=STEPS)
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Ranges: two-sided, paper or none.", rich_help_panel=STEPS)
    ] = None,
    learn_steps: Annotated[
        int | None, typer.Option(help="Steps of learned rounding; 0 for none.", rich_help_panel=STEPS)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Score the result, and write report.html and report.json there."),
    ] = None,
    report_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to score for it; Python's help topics if not given."),
    ] = None,
    learn_norm_steps: Annotated[
        int | None,
        typer.Option(help="Steps of fitting the norm before the head; 0 for none.", rich_help_panel=STEPS),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished block.")] = False,
    json_output: Json = False,
) -> None:
    """Quantize a model's weights, activation-aware, into a checkpoint that other tools load too."""
    groups = _group_size(group_size)
    from awq_tvm import api

    with ProgressDisplay() as display:
        done = api.quantize(
            model,
            out,
            method=cast("api.Method", method),
            bits=bits,
            group_size=groups,
            symmetric=symmetric,
            quantize_embedding=quantize_embedding,
            quantize_lm_head=quantize_lm_head,
            calibration=calibration,
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            device=device,
            scale_steps=scale_steps,
            clip=cast("Literal['two-sided', 'paper', 'none'] | None", clip),
            learn_steps=learn_steps,
            learn_norm_steps=learn_norm_steps,
            report=report,
            report_text=report_text,
            resume=resume,
            progress=display.update,
        )
    found: dict[str, Any] = done.as_dict()
    for warning in found.get("warnings", ()):
        say(f"warning: {warning}")
    if json_output:
        print_json(found)
    else:
        sizes = f"{in_bytes(found['bytes_before'])} -> {in_bytes(found['bytes_after'])}"
        budget = found["budget"]
        widths = f"{found['bits']} bits" if budget is None else f"{budget:g} bits on average"
        print(f"{found['out']}: {widths}, groups of {found['group_size']}")
        print(f"{sizes} in {found['seconds']:.0f} s")
        if quality := found["quality"]:
            print(
                f"perplexity {quality['perplexity_before']:.4f} -> {quality['perplexity_after']:.4f}, "
                f"KL {quality['kl_divergence']:.5f} nats a token on {quality['text']}"
            )
        if report is not None:
            print(f"report: {report / 'report.html'}")


def _group_size(text: str) -> str | int:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--group-size {text[:80]!r} is not a number.",
            where="--group-size",
            why=f"found {text[:80]!r}, needed auto or a whole number such as 64",
            fix="--group-size auto",
        ) from None
