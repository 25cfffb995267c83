"""Who made a bundle: signatures by a key, in the format of OpenSSF Model Signing, through its library.

A bundle's own hashes find damage; whoever can write it can write those too. A signature is made with a private key
over the hash of every file, and lies beside the bundle, which holds nothing that its manifest does not list. Other
programs read it: `model_signing verify key BUNDLE --signature BUNDLE.sig --public_key KEY`.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from awq_tvm.bundle.verify import verify_bundle
from awq_tvm.errors import BundleError, ResourceError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from model_signing.hashing import Config

MAX_KEY_BYTES = 1 << 16
MAX_SIGNATURE_BYTES = 16 << 20


def signature_of(bundle: Path) -> Path:
    """Where the signature of a bundle is: beside it, as `<bundle>.sig`."""
    path = bundle.resolve()
    return path.with_name(f"{path.name}.sig")


def sign_bundle(bundle: Path, private_key: Path, signature: Path | None = None) -> Path:
    """Verify a bundle in full, then sign it.

    Args:
        bundle: the directory; it may be for another machine.
        private_key: PEM file of an elliptic-curve key (P-256, P-384 or P-521) that is not encrypted.
        signature: the file to make; None for `signature_of`.

    Returns:
        The file.

    Raises:
        UnsupportedError: the library is not installed.
        UsageError: no such key, or one that cannot sign.
        BundleError: the bundle is damaged.
        ResourceError: the signature exists, or cannot be written.
    """
    _require_library()
    from model_signing import signing

    out = signature_of(bundle) if signature is None else signature
    if out.exists():
        raise ResourceError(
            "The signature exists.", where=str(out), why="it would be overwritten", fix="remove it first"
        )
    if out.resolve().parent == bundle.resolve():
        raise UsageError(
            "A signature cannot lie in its bundle.",
            where=str(out),
            why="a bundle holds the files of its manifest and nothing else",
            fix=f"--signature {signature_of(bundle)}",
        )
    verify_bundle(bundle, target=False)
    _check_key(private_key)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:  # cryptography has a class for every way in which a file is no key.
        raise _bad_key(private_key, error) from None
    partial = out.with_name(f"{out.name}.partial")
    try:
        config.set_hashing_config(_every_file()).sign(bundle, partial)
        partial.replace(out)
    except OSError as error:
        raise ResourceError(
            "The signature cannot be written.", where=str(out), why=str(error), fix="--signature FILE"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return out


def check_signature(bundle: Path, public_key: Path, signature: Path | None = None) -> None:
    """The bundle is, byte for byte, what the owner of a key signed.

    Args:
        bundle: the directory.
        public_key: PEM file.
        signature: the signature; None for `signature_of`.

    Raises:
        UnsupportedError: the library is not installed.
        UsageError: no such key.
        BundleError: no signature, another key's, or a file was changed, added or removed since.
    """
    _require_library()
    from model_signing import verifying

    path = signature_of(bundle) if signature is None else signature
    _check_key(public_key)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise _bad_key(public_key, error) from None
    if not path.is_file():
        raise BundleError(
            "The bundle is not signed.",
            where=str(bundle),
            why=f"there is no file {path}",
            fix="get the signature too, or name it: --signature FILE",
        )
    if path.stat().st_size > MAX_SIGNATURE_BYTES:
        raise _refused(bundle, f"the signature has more than {MAX_SIGNATURE_BYTES} bytes")
    try:
        # The library prints remarks, and standard output is for data.
        with contextlib.redirect_stdout(sys.stderr):
            config.set_hashing_config(_every_file()).verify(bundle, path)
    except Exception as error:  # As many classes as there are ways to spoil a signature.
        raise _refused(bundle, str(error)[:500] or "the signature was not made with this key") from None


def _every_file() -> Config:
    """How the files are hashed: all of them, without following links."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _require_library() -> None:
    try:
        import model_signing  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "Signatures need the package model-signing.",
            where=str(error.name),
            why="it is not installed",
            fix="`pip install 'awq-tvm[sign]'`",
        ) from None


def _check_key(path: Path) -> None:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_KEY_BYTES:
            raise _bad_key(path, ValueError(f"a PEM file of at most {MAX_KEY_BYTES} bytes is needed"))
    except OSError as error:
        raise _bad_key(path, error) from None


def _bad_key(path: Path, error: Exception) -> UsageError:
    return UsageError(
        "This is no key for signatures.",
        where=str(path),
        why=str(error)[:300] or type(error).__name__,
        fix="`openssl ecparam -name prime256v1 -genkey -noout -out private.pem` makes one, "
        "`openssl ec -in private.pem -pubout -out public.pem` its public part",
    )


def _refused(bundle: Path, why: str) -> BundleError:
    return BundleError(
        "The bundle is not what was signed.",
        where=str(bundle),
        why=why,
        fix="get the bundle and its signature again from who made them; do not run this one",
    )
