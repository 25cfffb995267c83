"""`sign BUNDLE --private-key FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json
from awq_tvm.cli.output import print_json


def command(
    bundle: BundlePath,
    private_key: Annotated[
        Path, typer.Option(metavar="FILE", show_default=False, help="PEM file of an elliptic-curve key.")
    ],
    signature: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="The file to make; BUNDLE.sig if not given."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Sign a bundle with a key; `verify --public-key` and the verbs with --require-signature check it."""
    from awq_tvm.bundle.signature import sign_bundle

    made = sign_bundle(bundle, private_key, signature)
    if json_output:
        print_json({"bundle": bundle, "signature": made})
    else:
        print(f"{made}: signature of {bundle}")
