"""`bench BUNDLE`."""

from __future__ import annotations

from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json, whole_numbers
from awq_tvm.cli.output import in_bytes, print_json, table
from awq_tvm.cli.progress_bar import ProgressDisplay


def command(
    bundle: BundlePath,
    prompt_tokens: Annotated[str, typer.Option(metavar="N,N", help="Lengths of prompts.")] = "128,512",
    generate_tokens: Annotated[int, typer.Option(help="Tokens to generate; 0 for none.")] = 64,
    threads: Annotated[str, typer.Option(metavar="N,N", help="Thread counts.")] = "1,2",
    repetitions: Annotated[int, typer.Option(help="Of every test.")] = 5,
    json_output: Json = False,
) -> None:
    """Measure prompt reading (pp) and generation (tg); each thread count runs in a process of its own."""
    from awq_tvm.runtime.bench import BenchOptions, bench_bundle

    options = BenchOptions(
        prompt_tokens=whole_numbers(prompt_tokens, "--prompt-tokens"),
        generate_tokens=generate_tokens,
        threads=whole_numbers(threads, "--threads"),
        repetitions=repetitions,
    )
    with ProgressDisplay() as display:
        rows = bench_bundle(bundle, options, progress=display.update)
    if json_output:
        print_json({"rows": rows})
        return
    print(
        table(
            [
                (
                    row["test"],
                    row["threads"],
                    f"{row['tokens_per_second']:.1f}",
                    f"{100 * row['spread']:.0f}%",
                    f"{row['gigabytes_per_second']:.1f}",
                    in_bytes(row["peak_memory_bytes"]),
                )
                for row in rows
            ],
            header=("test", "threads", "tokens/s", "spread", "GB/s", "peak memory"),
            right=(1, 2, 3, 4, 5),
        )
    )
