"""`compile MODEL -o BUNDLE`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from awq_tvm.cli.options import Json, Model
from awq_tvm.cli.output import in_bytes, print_json, say, table
from awq_tvm.cli.progress_bar import ProgressDisplay


def command(
    model: Model,
    out: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="BUNDLE", show_default=False, help="The directory to make."),
    ],
    target: Annotated[str, typer.Option(help="auto, an alias or a name that `targets` lists.")] = "auto",
    activations: Annotated[
        str, typer.Option(help="auto, float, or int8 where the target has int8 dot products.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto: float32 on CPUs, float16 on GPUs; or bfloat16 for CUDA from 8.0 on.")
    ] = "auto",
    vocabulary_bits: Annotated[
        int,
        typer.Option(metavar="BITS", help="Of an unquantized embedding and head: 8, 4, or 16 for float16."),
    ] = 8,
    kv_cache: Annotated[
        str, typer.Option(help="float32, float16, int8 on CPUs, or auto: float16 with int8 activations.")
    ] = "auto",
    context_length: Annotated[
        int | None, typer.Option(help="Tokens of the longest sequence.", show_default=False)
    ] = None,
    max_sequences: Annotated[int, typer.Option(help="Sequences that are answered at once by `serve`.")] = 8,
    opt: Annotated[int, typer.Option(min=0, max=3, help="Optimization level.")] = 2,
    tuned: Annotated[bool, typer.Option("--tuned/--untuned", help="Use tuned records.")] = True,
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE_OR_FOLDER", show_default=False, help="More tuned records."),
    ] = None,
    debug_dump: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="Write the IR after every pass.")
    ] = None,
    source_only: Annotated[
        bool,
        typer.Option("--source-only", help="For CUDA without nvcc: leave kernels as source, for `finish`."),
    ] = False,
    host_here: Annotated[
        bool,
        typer.Option("--host-here", help="Of a GPU: called from this machine, for `verify --emulate`."),
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each kernel got its schedule.")] = False,
    json_output: Json = False,
) -> None:
    """Compile a model into a verified bundle for one target; an unquantized one is quantized first."""
    from awq_tvm.api import quantized_first
    from awq_tvm.bundle.verify import read_manifest
    from awq_tvm.compile.toolchain import require_tools
    from awq_tvm.output_folder import check_output
    from awq_tvm.targets import resolve, with_host_here

    check_output(out)
    chip = with_host_here(resolve(target)) if host_here else resolve(target)
    require_tools(chip, source_only=source_only)
    formats: dict[str, Any] = {
        "activations": activations,
        "dtype": dtype,
        "vocabulary_bits": vocabulary_bits,
        "kv_cache": kv_cache,
        "context_length": context_length,
        "max_sequences": max_sequences,
    }
    with ProgressDisplay() as display:
        source, first = quantized_first(model, out, display.update, say, target=chip, **formats)
        from awq_tvm.compile.driver import compile_model

        report = compile_model(
            source,
            out,
            target=chip,
            **formats,
            opt=opt,
            tuned=tuned,
            records=records or (),
            debug_dump=debug_dump,
            source_only=source_only,
            progress=display.update,
        )
    manifest = read_manifest(out)
    size = sum(info.size for info in manifest.files.values())
    for note in report.notes:
        say(f"note: {note}")
    if explain:
        say(
            table(
                [
                    (kernel.name, kernel.count, kernel.source, kernel.reason)
                    for kernel in manifest.tuning.kernels
                ],
                header=("kernel", "count", "schedule", "why"),
                right=(1,),
            )
        )
    if json_output:
        print_json({**dataclasses.asdict(report), "quantized_first": first, "bytes": size})
        return
    kernels = manifest.tuning.kernels
    counts = {
        source: sum(k.count for k in kernels if k.source == source)
        for source in ("tuned", "nearest", "default", "fallback")
    }
    print(f"{out}: {report.target}, activations {report.activations}, {in_bytes(size)}")
    print("kernels: " + ", ".join(f"{count} {source}" for source, count in counts.items()))
