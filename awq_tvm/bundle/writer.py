"""Write a bundle: built beside its final place, hashed, synced, and renamed there as the last step."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from awq_tvm.bundle.lock import hold_output
from awq_tvm.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest, ManifestDraft
from awq_tvm.bundle.weights import write_weights
from awq_tvm.errors import ResourceError, UsageError

CARD_NAME = "README.md"
_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_output(out: Path, needed_bytes: int = 0) -> None:
    """Refuse an output that cannot be written, before any work is done for it.

    Args:
        out: the directory that a later write makes; its parents are made with it.
        needed_bytes: what will be written; 0 where it is not known.

    Raises:
        ResourceError: it exists, its file system is read-only or full, or a parent is no directory.
    """
    if out.exists() or out.is_symlink():
        raise ResourceError(
            "The output exists already.",
            where=str(out),
            why="nothing is overwritten",
            fix="name another output, or move this one away",
        )
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir():
        raise ResourceError(
            "The output cannot be made.",
            where=str(out),
            why=f"{parent} is not a directory",
            fix="name another output",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(
            "The output cannot be made.",
            where=str(out),
            why=f"{parent} is not writable",
            fix="name an output in a directory you may write to",
        )
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise ResourceError(
            "There is too little disk space for the output.",
            where=str(parent),
            why=f"{needed_bytes} bytes are needed, {free} are free",
            fix="free some space, or name an output on another disk",
        )


def write_bundle(
    out: Path,
    draft: ManifestDraft,
    library: Path | bytes,
    weights: Iterable[tuple[str, np.ndarray]],
    side_files: Mapping[str, bytes],
    card: str,
) -> Manifest:
    """Write the directory `out` and return its manifest.

    Args:
        out: must not exist; made from `<out>.partial` by one rename.
        draft: everything but the file list; `draft.parameters` names exactly the tensors of `weights`.
        library: the compiled library, as a file to copy or as its bytes.
        weights: (name, array) pairs, each written and let go before the next is asked for.
        side_files: tokenizer files and the like, by plain file name.
        card: text of README.md.

    Raises:
        ResourceError: the output exists, cannot be written, or is being written by another process.
        UsageError: names that clash, or weights that are not the ones the draft names.
    """
    _check_names(draft, side_files)
    partial = out.with_name(out.name + ".partial")
    try:
        library_size = len(library) if isinstance(library, bytes) else library.stat().st_size
        check_output(out, library_size + sum(map(len, side_files.values())))
        out.parent.mkdir(parents=True, exist_ok=True)
        with hold_output(out):
            if partial.exists():  # left by a writer that was killed: the lock shows that none is alive
                shutil.rmtree(partial)
            try:
                partial.mkdir()
                manifest = _fill(partial, draft, library, weights, side_files, card)
                check_output(out)
                partial.rename(out)
                _sync_directory(out.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        full = error.errno in _OUT_OF_SPACE
        raise ResourceError(
            "The disk is full." if full else "The output cannot be written.",
            where=str(error.filename or out),
            why=error.strerror or str(error),
            fix="free some space and run it again" if full else "name an output you may write to",
        ) from None
    return manifest


def _check_names(draft: ManifestDraft, side_files: Mapping[str, bytes]) -> None:
    reserved = {draft.library, draft.weights, MANIFEST_NAME, CARD_NAME}
    clash = sorted(reserved & side_files.keys())
    if clash or len(reserved) != 4:
        raise UsageError(
            "Two files of the bundle would have one name.",
            where=", ".join(clash) or CARD_NAME,
            why=f"{sorted(reserved)} are the bundle's own",
            fix="rename the file that is carried along",
        )


def _fill(
    partial: Path,
    draft: ManifestDraft,
    library: Path | bytes,
    weights: Iterable[tuple[str, np.ndarray]],
    side_files: Mapping[str, bytes],
    card: str,
) -> Manifest:
    if isinstance(library, bytes):
        (partial / draft.library).write_bytes(library)
    else:
        shutil.copyfile(library, partial / draft.library)
    write_weights(partial / draft.weights, draft.parameters, weights)
    for name, content in {**side_files, CARD_NAME: card.encode()}.items():
        (partial / name).write_bytes(content)
    files = {}
    for path in sorted(partial.iterdir()):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        files[path.name] = FileInfo(sha256=digest, size=path.stat().st_size)
    manifest = Manifest(**{name: getattr(draft, name) for name in ManifestDraft.model_fields}, files=files)
    with (partial / MANIFEST_NAME).open("wb") as handle:
        handle.write(manifest.to_bytes())
        handle.flush()
        os.fsync(handle.fileno())
    _sync_directory(partial)
    return manifest


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
