"""`export MODEL -o OUT --format FORMAT`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import Json, Model
from awq_tvm.cli.output import in_bytes, print_json


def command(
    model: Model,
    out: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", show_default=False, help="The folder or file to make."),
    ],
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            show_default=False,
            help="awq, awq-gemv-fast, llm-awq, compressed-tensors, gguf-f16, gguf-q8_0, gguf-q4_0 or gguf-q4_1.",
        ),
    ],
    json_output: Json = False,
) -> None:
    """Write a checkpoint in the format that another program loads."""
    from awq_tvm.checkpoint import export_checkpoint, open_checkpoint

    start = time.perf_counter()
    checkpoint = open_checkpoint(model)
    export_checkpoint(out, checkpoint, format=format)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    found = {"out": str(out), "format": format, "bytes": size, "seconds": time.perf_counter() - start}
    if json_output:
        print_json(found)
    else:
        print(f"{out}: {format}, {in_bytes(size)} in {found['seconds']:.1f} s")
