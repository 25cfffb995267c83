"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", show_default=False, help="A folder, a .gguf file, hf:org/name@revision, or demo."
    ),
]
BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", show_default=False, help="A directory that `compile` wrote.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads; one a core by default.", show_default=False)
]

RequireSignature = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="PUBLIC_KEY",
        show_default=False,
        help="Take only a bundle that this key signed, as BUNDLE.sig says.",
    ),
]


def check_signed(bundle: Path, public_key: Path | None) -> None:
    """Refuse a bundle that the owner of a key did not sign; None asks for no signature.

    Raises:
        UnsupportedError: the library is not installed.
        UsageError: no such key.
        BundleError: no signature, another key's, or one of something else.
    """
    if public_key is not None:
        from awq_tvm.bundle.signature import check_signature

        check_signature(bundle, public_key)


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Read "128,512".

    Raises:
        UsageError: a part is not a whole number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise UsageError(
            f"{option} is not a list of whole numbers.",
            where=option,
            why=f"found {text[:80]!r}, needed something like 128,512",
            fix="separate whole numbers by commas",
        ) from None


def is_bundle(model: str) -> bool:
    """Whether what the user typed is a bundle directory and not a checkpoint."""
    return (Path(model) / "manifest.json").exists()
