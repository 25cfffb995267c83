"""Measure quantization recipes against the model they start from, on a text of your own.

    python -m benchmarks.quality --text FILE                     the demo model, rtn and awq at 4 and 3 bits
    python -m benchmarks.quality --text FILE --recipes rtn,awq,paper --bits 4 --tokens 16384 --context 1024
    python -m benchmarks.quality --text FILE --model hf:org/name --calibration other.txt --json

Every row is a whole run of `quantize_checkpoint` into a temporary folder, read back from there and scored in
float32 by the protocol of `awq_tvm.scoring`. "paper" is the AWQ paper's recipe: its symmetric clip, no
scales between value and output projections of different widths. Recipes with other names than a method leave a
step out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import AwqTvmError
from awq_tvm.progress import ProgressEvent
from awq_tvm.quantize.evaluate import score_tokens, token_ids_of
from awq_tvm.quantize.options import METHODS, AwqOptions
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model

Method = Literal["awq", "awq+", "rtn"]

RECIPES: dict[str, tuple[Method, AwqOptions | None]] = {
    "rtn": ("rtn", None),
    "paper": ("awq", AwqOptions(clip="paper", share_value_scales=False)),
    "awq without clip": ("awq", AwqOptions(clip="none")),
    "awq without value scales": ("awq", AwqOptions(share_value_scales=False)),
    "awq": ("awq", METHODS["awq"]),
    "learned rounding alone": (
        "awq+",
        replace(METHODS["awq+"], scale_steps=0, clip="none", learn_norm_steps=0),
    ),
    "awq+ without scales": ("awq+", replace(METHODS["awq+"], scale_steps=0)),
    "awq+ without clip": ("awq+", replace(METHODS["awq+"], clip="none")),
    "awq+ on full-precision inputs": ("awq+", replace(METHODS["awq+"], learn_from="full")),
    "awq+ with the search's steps": ("awq+", replace(METHODS["awq+"], learn_scale_rate=0.0)),
    "awq+ without final norm": ("awq+", replace(METHODS["awq+"], learn_norm_steps=0)),
    "awq+": ("awq+", METHODS["awq+"]),
}

COLUMNS = ("recipe", "bits", "perplexity", "kl_divergence", "top1_agreement", "cpu_seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text to score")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--recipes", default="rtn,awq", help=", ".join(RECIPES))
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--group-size", default="auto")
    parser.add_argument("--calibration", default="default")
    parser.add_argument("--samples", type=int, help="of calibration text; 16, with awq+ 64, if not given")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.recipes.split(",") if name not in RECIPES]
    if unknown:
        parser.error(f"unknown recipe {unknown[0]!r}; known are {', '.join(RECIPES)}")
    try:
        rows = []
        if not options.json:
            print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
        for row in measure(options):
            rows.append(row)
            if not options.json:
                print(format_row(row), flush=True)
    except AwqTvmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({"schema_version": 1, "rows": rows}, indent=1))
    return 0


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Score the model itself, then every recipe at every number of bits."""
    checkpoint = open_checkpoint(options.model)
    ids = token_ids_of(checkpoint, options.text, options.tokens)
    reference = build_model(checkpoint)
    yield {"recipe": "full precision", **score_tokens(reference, ids, context=options.context)}
    for bits in (int(text) for text in options.bits.split(",")):
        for recipe in options.recipes.split(","):
            method, search = RECIPES[recipe]
            with tempfile.TemporaryDirectory() as folder:
                started = time.process_time()
                quantize_checkpoint(
                    options.model,
                    Path(folder) / "quantized",
                    method=method,
                    bits=bits,
                    group_size=options.group_size,
                    calibration=options.calibration,
                    samples=options.samples,
                    sequence_length=options.sequence_length,
                    seed=options.seed,
                    options=search,
                    progress=_show,
                )
                seconds = time.process_time() - started
                quantized = build_model(open_checkpoint(str(Path(folder) / "quantized")))
                figures = score_tokens(quantized, ids, context=options.context, reference=reference)
            yield {"recipe": recipe, "bits": bits, **figures, "cpu_seconds": round(seconds)}


def format_row(row: dict[str, Any]) -> str:
    """One row of the Markdown table; empty where a figure does not apply."""
    digits = {"perplexity": ".3f", "kl_divergence": ".4f", "top1_agreement": ".3f"}
    values = (row.get(column) for column in COLUMNS)
    cells = (
        "" if value is None else format(value, digits.get(column, ""))
        for column, value in zip(COLUMNS, values, strict=True)
    )
    return "| " + " | ".join(cells) + " |"


def _show(event: ProgressEvent) -> None:
    if event.stage == "block" and (event.done % 10 == 0 or event.done == event.total):
        print(f"block {event.done}/{event.total}: {event.message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
