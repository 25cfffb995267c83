"""`serve BUNDLE`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json, RequireSignature, Threads, check_signed
from awq_tvm.cli.output import print_json, say
from awq_tvm.errors import UnsupportedError


def command(
    bundle: BundlePath,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="API keys, one a line; clients send one of them."
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="What clients call the model.")
    ] = None,
    max_sequences: Annotated[
        int | None,
        typer.Option(show_default=False, help="Answers at once; by default what the bundle holds."),
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Requests that wait; more are answered 429.")] = 256,
    prefill_chunk: Annotated[
        int | None,
        typer.Option(show_default=False, help="Tokens of prompts read between two tokens of answers."),
    ] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Keep beginnings of prompts for the next that begins alike.",
        ),
    ] = True,
    request_seconds: Annotated[float, typer.Option(help="Longest time a request may take.")] = 600.0,
    require_signature: RequireSignature = None,
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Serve a bundle over HTTP as OpenAI's API; with --json the address is printed as JSON."""
    try:
        from awq_tvm.serve.server import ServerOptions, run_server
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in (
            "fastapi",
            "starlette",
            "uvicorn",
            "prometheus_client",
            "llguidance",
        ):
            raise
        raise UnsupportedError(
            "Serving needs FastAPI, uvicorn, prometheus-client and llguidance.",
            where=str(error.name),
            why="they are not installed",
            fix="`pip install 'awq-tvm[serve]'`",
        ) from None
    from awq_tvm.serve.scheduler import SchedulerLimits

    check_signed(bundle, require_signature)

    def ready(url: str, name: str) -> None:
        if json_output:
            print_json({"url": url, "model": name})
        else:
            say(f"{name} is served at {url}/v1; ^C ends it.")

    options = ServerOptions(
        host=host,
        port=port,
        api_key_file=api_key_file,
        model_name=model_name,
        threads=threads,
        limits=SchedulerLimits(max_sequences, max_waiting, prefill_chunk, prefix_cache),
        request_seconds=request_seconds,
    )
    run_server(bundle, options, ready)
