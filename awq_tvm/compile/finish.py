"""From a source-only bundle to a finished one, on a machine that has nvcc: what `compile` would have made with it."""

from __future__ import annotations

import gzip
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq_tvm.bundle.manifest import ManifestDraft
from awq_tvm.bundle.reader import Bundle, open_bundle
from awq_tvm.bundle.weights import map_weights
from awq_tvm.bundle.writer import CARD_NAME, write_bundle
from awq_tvm.compile.description import card
from awq_tvm.compile.driver import kernel_files
from awq_tvm.compile.toolchain.cuda import (
    UNFINISHED_JOB_NAME,
    UNFINISHED_MODULE_NAME,
    CudaJob,
    finish_cuda,
)
from awq_tvm.errors import BundleError, UsageError
from awq_tvm.output_folder import check_output

if TYPE_CHECKING:
    from awq_tvm.compile.toolchain import BuiltLibrary

MAX_MODULE_BYTES = 1 << 30
"""Unpacked; the largest models that compile have some tens of MB."""


@dataclass(frozen=True)
class FinishReport:
    """What finishing did.

    Attributes:
        bundle: the directory written.
        target: name of the target.
        seconds: of everything.
        notes: sentences about the build.
    """

    bundle: Path
    target: str
    seconds: float
    notes: tuple[str, ...]


def finish_bundle(unfinished: Path, out: Path) -> FinishReport:
    """Compile the kernels of a source-only bundle and write a finished one; the former is only read.

    Args:
        unfinished: the directory that `compile --source-only` wrote.
        out: the directory to make, which must not exist.

    Raises:
        UsageError: the bundle is finished.
        BundleError: it is damaged, of other versions, or contradicts itself.
        TargetError: nvcc is missing or rejects a kernel.
        ResourceError: the output exists or cannot be written.
    """
    start = time.perf_counter()
    check_output(out)
    bundle = open_bundle(unfinished, target=False)
    if not bundle.manifest.source_only:
        raise UsageError(
            "The bundle is finished already.",
            where=str(unfinished),
            why="its kernels are compiled, or nvcc does not compile for its target",
            fix="use it as it is",
        )
    with tempfile.TemporaryDirectory(prefix="awq_tvm-") as folder:
        library = finish_cuda(*_left_to_do(bundle), Path(folder))
        _require_same_source(bundle, library)
        _write(bundle, library, out)
    return FinishReport(out, bundle.manifest.target.name, time.perf_counter() - start, library.notes)


def _left_to_do(bundle: Bundle) -> tuple[CudaJob, str]:
    """The job and the module that the bundle holds."""
    try:
        job = CudaJob.from_json((bundle.path / UNFINISHED_JOB_NAME).read_text(encoding="utf-8"))
        with gzip.open(bundle.path / UNFINISHED_MODULE_NAME) as file:
            module = file.read(MAX_MODULE_BYTES + 1)
        if len(module) > MAX_MODULE_BYTES:
            raise ValueError(f"{UNFINISHED_MODULE_NAME} unpacks to more than {MAX_MODULE_BYTES} bytes")
        return job, module.decode()
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        raise _refuse(bundle, f"{type(error).__name__}: {error}") from None


def _require_same_source(bundle: Bundle, library: BuiltLibrary) -> None:
    """What was compiled is what the bundle shows, and what the emulator ran."""
    for path in library.files:
        if path.suffix == ".cu":
            shown = bundle.path / path.name
            if path.name not in bundle.manifest.files or shown.read_bytes() != path.read_bytes():
                raise _refuse(bundle, f"TVM makes another {path.name} of its module than it holds")


def _write(bundle: Bundle, library: BuiltLibrary, out: Path) -> None:
    before = bundle.manifest
    fields = {name: getattr(before, name) for name in ManifestDraft.model_fields}
    draft = ManifestDraft(**{**fields, "source_only": False})
    replaced = {before.library, before.weights, CARD_NAME, UNFINISHED_JOB_NAME, UNFINISHED_MODULE_NAME}
    kept = {name: (bundle.path / name).read_bytes() for name in before.files if name not in replaced}
    weights = zip(before.parameters, map_weights(bundle.weights, before.parameters), strict=True)
    write_bundle(out, draft, library.path, weights, {**kept, **kernel_files(library)}, card(draft))


def _refuse(bundle: Bundle, why: str) -> BundleError:
    return BundleError(
        "The bundle cannot be finished.",
        where=str(bundle.path),
        why=why[:500],
        fix="build it again with `python -m awq_tvm compile --source-only`",
    )
