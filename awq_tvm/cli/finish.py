"""`finish BUNDLE -o FINISHED`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json
from awq_tvm.cli.output import print_json, say


def command(
    bundle: BundlePath,
    out: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FINISHED", show_default=False, help="The directory to make."),
    ],
    json_output: Json = False,
) -> None:
    """Compile the kernels of a bundle that `compile --source-only` made; needs the CUDA toolkit, but no GPU."""
    from awq_tvm.compile.finish import finish_bundle

    report = finish_bundle(bundle, out)
    for note in report.notes:
        say(f"note: {note}")
    if json_output:
        print_json(dataclasses.asdict(report))
        return
    print(f"{out}: {report.target}, finished in {report.seconds:.1f} s")
