"""`verify BUNDLE`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json
from awq_tvm.cli.output import in_bytes, print_json
from awq_tvm.errors import UsageError


def command(
    bundle: BundlePath,
    any_target: Annotated[
        bool, typer.Option("--any-target", help="Do not ask whether this machine can run it.")
    ] = False,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Also require a signature by this key."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="That signature; BUNDLE.sig if not given."),
    ] = None,
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Also run a GPU's bundle on this CPU, every access checked.")
    ] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="With --emulate: what to read.")] = "Once upon a",
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="With --emulate: how many tokens to generate.")
    ] = 2,
    json_output: Json = False,
) -> None:
    """Check every file of a bundle against its manifest, the versions, and this machine."""
    if signature is not None and public_key is None:
        raise UsageError(
            "A signature needs the key that made it.",
            where="--signature",
            why="found no --public-key",
            fix="--public-key FILE",
        )
    if public_key is not None:
        from awq_tvm.bundle.signature import check_signature

        check_signature(bundle, public_key, signature)
    if emulate:
        # Verifies too, but for the GPU.
        _emulate(bundle, prompt, tokens, json_output)
        return
    from awq_tvm.bundle.verify import verify_bundle

    start = time.perf_counter()
    manifest = verify_bundle(bundle, target=not any_target)
    seconds = time.perf_counter() - start
    size = sum(info.size for info in manifest.files.values())
    if json_output:
        print_json(
            {
                "ok": True,
                "bundle": bundle,
                "target": manifest.target.name,
                "target_checked": not any_target,
                "signature_checked": public_key is not None,
                "source_only": manifest.source_only,
                "files": len(manifest.files),
                "bytes": size,
                "seconds": seconds,
            }
        )
        return
    signed = "" if public_key is None else f"; signed by the key of {public_key}"
    runs = "not asked whether this machine runs it" if any_target else "this machine can run it"
    if manifest.source_only:
        runs = "its kernels are source only, for `python -m awq_tvm finish`"
    print(
        f"{bundle}: good; {len(manifest.files)} files, {in_bytes(size)}, checked in {seconds:.2f} s; {runs}{signed}"
    )


def _emulate(bundle: Path, prompt: str, tokens: int, json_output: bool) -> None:
    """Run the bundle in the emulator and say what came of it."""
    from awq_tvm.runtime.emulated import run_emulated

    run = run_emulated(bundle, prompt, tokens)
    if json_output:
        print_json({"ok": True, "bundle": bundle, **dataclasses.asdict(run)})
        return
    launched = sum(run.launches.values())
    print(
        f"{bundle}: {launched} launches of {len(run.launches)} kernels, nothing found; "
        f"{run.prompt_tokens} tokens read, {len(run.token_ids)} generated in {run.seconds:.1f} s: {run.text!r}"
    )
