"""Write a bundle: filled beside its final place, hashed, synced; it appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from awq_tvm.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest, ManifestDraft
from awq_tvm.bundle.weights import write_weights
from awq_tvm.errors import UsageError
from awq_tvm.output_folder import output_folder, write_synced

CARD_NAME = "README.md"


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
        out: must not exist; see `output_folder`.
        draft: everything but the file list; `draft.parameters` names exactly the tensors of `weights`.
        library: the compiled library, as a file to copy or as its bytes.
        weights: (name, array) pairs, each written and let go before the next is asked for.
        side_files: tokenizer files and the like, by plain file name.
        card: text of README.md.

    Raises:
        ResourceError: the output exists, cannot be written, or is being written by another process.
        UsageError: names that clash, or weights that are not the ones the draft names.
        OSError: the library is a file that is not there.
    """
    _check_names(draft, side_files)
    library_size = len(library) if isinstance(library, bytes) else library.stat().st_size
    needed_bytes = library_size + sum(map(len, side_files.values()))
    with output_folder(out, needed_bytes=needed_bytes) as folder:
        return _fill(folder, draft, library, weights, side_files, card)


def _check_names(draft: ManifestDraft, side_files: Mapping[str, bytes]) -> None:
    reserved = {draft.library, draft.weights, MANIFEST_NAME, CARD_NAME}
    clash = sorted(reserved & side_files.keys())
    if clash or len(reserved) != 4:
        raise UsageError(
            "two files of the bundle would have one name",
            where=", ".join(clash) or CARD_NAME,
            why=f"{sorted(reserved)} are the bundle's own",
            fix="rename the file that is carried along",
        )


def _fill(
    folder: Path,
    draft: ManifestDraft,
    library: Path | bytes,
    weights: Iterable[tuple[str, np.ndarray]],
    side_files: Mapping[str, bytes],
    card: str,
) -> Manifest:
    if isinstance(library, bytes):
        (folder / draft.library).write_bytes(library)
    else:
        shutil.copyfile(library, folder / draft.library)
    write_weights(folder / draft.weights, draft.parameters, weights)
    for name, content in {**side_files, CARD_NAME: card.encode()}.items():
        (folder / name).write_bytes(content)
    files = {}
    for name in sorted({draft.library, draft.weights, CARD_NAME, *side_files}):
        with (folder / name).open("rb") as handle:
            os.fsync(handle.fileno())
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            files[name] = FileInfo(sha256=digest, size=os.fstat(handle.fileno()).st_size)
    manifest = Manifest(**{name: getattr(draft, name) for name in ManifestDraft.model_fields}, files=files)
    write_synced(folder / MANIFEST_NAME, manifest.to_bytes())
    return manifest
