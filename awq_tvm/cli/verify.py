"""`verify BUNDLE`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json
from awq_tvm.cli.output import in_bytes, print_json


def command(
    bundle: BundlePath,
    any_target: Annotated[
        bool, typer.Option("--any-target", help="Do not ask whether this machine can run it.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Check every file of a bundle against its manifest, the versions, and this machine."""
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
                "files": len(manifest.files),
                "bytes": size,
                "seconds": seconds,
            }
        )
        return
    runs = "not asked whether this machine runs it" if any_target else "this machine can run it"
    print(
        f"{bundle}: good; {len(manifest.files)} files, {in_bytes(size)}, checked in {seconds:.2f} s; {runs}"
    )
