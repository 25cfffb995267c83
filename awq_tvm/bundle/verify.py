"""Every check a bundle passes before one byte of it is loaded.

A truncated library kills the process that maps it and a foreign one runs its constructors: hashes come first.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import stat
from pathlib import Path

from awq_tvm.bundle import machine
from awq_tvm.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from awq_tvm.errors import BundleError, TargetError

_DISTRIBUTIONS = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
_COPY_AGAIN = "copy the bundle again, or build it again with `python -m awq_tvm compile`"


def read_manifest(path: Path) -> Manifest:
    """Read and check `manifest.json` of a bundle directory.

    Raises:
        BundleError: no directory, no manifest, one that is too large, damaged or of another version.
    """
    if not path.is_dir():
        raise BundleError(
            "There is no bundle here.",
            where=str(path),
            why="it is not a directory" if path.exists() else "it does not exist",
            fix="name the directory that `python -m awq_tvm compile MODEL -o BUNDLE` wrote",
        )
    where = path / MANIFEST_NAME
    if where.is_symlink() or not where.is_file():
        raise BundleError(
            "This directory is not a bundle.",
            where=str(path),
            why=f"it has no regular file {MANIFEST_NAME}",
            fix="name the directory that `python -m awq_tvm compile MODEL -o BUNDLE` wrote",
        )
    with where.open("rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(
            "The manifest is too large.",
            where=str(where),
            why=f"it has {where.stat().st_size} bytes, at most {MAX_MANIFEST_BYTES} are read",
            fix=_COPY_AGAIN,
        )
    return parse_manifest(raw, where)


def check_listing(path: Path, manifest: Manifest) -> None:
    """The directory holds the listed regular files of the listed sizes, the manifest, and nothing else.

    Raises:
        BundleError: a file is missing, extra, not a regular file, or of another size.
    """
    found = {entry.name: entry.lstat() for entry in path.iterdir()}
    listed = {*manifest.files, MANIFEST_NAME}
    missing, extra = sorted(listed - found.keys()), sorted(found.keys() - listed)
    if missing or extra:
        raise BundleError(
            "The bundle does not hold the files its manifest lists.",
            where=str(path),
            why="; ".join(
                f"{label}: {', '.join(names[:8])}"
                for label, names in (("missing", missing), ("extra", extra))
                if names
            ),
            fix=_COPY_AGAIN if missing else "move the extra files out of the bundle",
        )
    for name, status in found.items():
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(
                "A file of the bundle is not a regular file.",
                where=str(path / name),
                why="it is a link, a directory or a device",
                fix="copy the bundle with its files, not links to them",
            )
        if name != MANIFEST_NAME and status.st_size != manifest.files[name].size:
            raise BundleError(
                "A file of the bundle has another size.",
                where=str(path / name),
                why=f"{manifest.files[name].size} bytes are needed, {status.st_size} found",
                fix=_COPY_AGAIN,
            )


def check_versions(path: Path, manifest: Manifest) -> None:
    """The installed TVM and TVM-FFI are exactly the ones the bundle was built with.

    Raises:
        BundleError: one is missing or differs.
    """
    for field, distribution in _DISTRIBUTIONS.items():
        needed = getattr(manifest.versions, field)
        try:
            found = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != needed:
            raise BundleError(
                f"The bundle was built with another {distribution}.",
                where=str(path),
                why=f"{distribution} {needed} is needed, {found} is installed",
                fix=f"`pip install {distribution}=={needed}`, or `{rebuild_line(path, manifest)}`",
            )


def check_finished(path: Path, manifest: Manifest) -> None:
    """The bundle's kernels are compiled.

    Raises:
        TargetError: they are there as source only.
    """
    if manifest.source_only:
        raise TargetError(
            "The bundle holds its GPU kernels as source only.",
            where=f"{path}, target {manifest.target.name}",
            why="it was compiled without nvcc, by `compile --source-only`",
            fix=f"on a machine with the CUDA toolkit: `python -m awq_tvm finish {path} -o {path.name}.finished`; "
            + check_line(path, manifest),
        )


def check_target(path: Path, manifest: Manifest, *, device: machine.Machine | None = None) -> None:
    """A machine can execute what the bundle holds.

    Args:
        path: the bundle, for messages.
        manifest: its manifest.
        device: the machine; None for this one.

    Raises:
        TargetError: another instruction set or system, a missing CPU feature, no GPU or one that is too old.
    """
    target = manifest.target
    on = machine.this_machine(gpus=target.kind == "cuda") if device is None else device
    for label, needed, found in (
        ("instruction set", machine.architecture(target.triple), on.architecture),
        ("operating system", machine.operating_system(target.triple), on.operating_system),
    ):
        if needed != found and not (label == "operating system" and needed == "unknown"):
            raise _foreign(path, manifest, f"{label} {needed}", found)
    wanted_gpus = [name for name in target.required_features if name.startswith(("sm_", "compute_"))]
    if target.kind == "cuda":
        if not on.gpus:
            raise _foreign(path, manifest, "a CUDA GPU and its driver", "none")
        # A library holds code for several architectures; one that fits is enough.
        fits = any(machine.runs_on_gpu(needed, gpu) for needed in wanted_gpus for gpu in on.gpus)
        if wanted_gpus and not fits:
            raise _foreign(path, manifest, " or ".join(wanted_gpus), ", ".join(on.gpus))
    if target.kind == "metal" and on.operating_system != "darwin":
        raise _foreign(path, manifest, "an Apple GPU", on.operating_system)
    missing = sorted(set(target.required_features) - set(wanted_gpus) - on.features)
    if missing:
        lacking = f"a CPU without {', '.join(missing)}"
        raise _foreign(path, manifest, f"CPU features {', '.join(sorted(target.required_features))}", lacking)


def check_hashes(path: Path, manifest: Manifest) -> None:
    """Every listed file has its SHA-256.

    Raises:
        BundleError: a file differs; the message names it.
    """
    for name in manifest.files:
        check_hash(path, manifest, name)


def check_hash(path: Path, manifest: Manifest, name: str) -> None:
    """One listed file has its SHA-256.

    Raises:
        BundleError: it differs; the message names it.
    """
    wanted = manifest.files[name].sha256
    with (path / name).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise BundleError(
            "A file of the bundle was changed after it was written.",
            where=str(path / name),
            why=f"sha256 {wanted} is needed, {found} found",
            fix=_COPY_AGAIN,
        )


def verify_bundle(path: Path, *, target: bool = True) -> Manifest:
    """Run every check; return the manifest of a bundle that may be loaded.

    Args:
        path: the bundle directory.
        target: also require that this machine can execute it; False to check a bundle for another device.

    Raises:
        BundleError: it is damaged, incomplete or of another version.
        TargetError: it is for another machine, or not finished.
    """
    manifest = read_manifest(path)
    check_listing(path, manifest)
    check_versions(path, manifest)
    if target:
        check_finished(path, manifest)
        check_target(path, manifest)
    check_hashes(path, manifest)
    return manifest


def rebuild_line(path: Path, manifest: Manifest, target: str = "auto") -> str:
    """The command that builds this bundle for the machine it is typed on, or for another target."""
    model = manifest.recipe.extra.get("source", "MODEL")
    return f"python -m awq_tvm compile {model} --target {target} -o {path.name}.new"


def check_line(path: Path, manifest: Manifest) -> str:
    """The command that checks this bundle on a machine that it is not for, and what the command does, in words."""
    triple = manifest.target.triple
    host = machine.architecture(triple), machine.operating_system(triple)
    emulated = manifest.target.kind != "cpu" and host == (machine.architecture(), machine.operating_system())
    option, does = ("--emulate", "tries") if emulated else ("--any-target", "checks the files of")
    return f"`python -m awq_tvm verify {path} {option}` {does} this one here"


def _foreign(path: Path, manifest: Manifest, needed: str, found: str) -> TargetError:
    return TargetError(
        "The bundle was built for another machine.",
        where=f"{path}, target {manifest.target.name}",
        why=f"it needs {needed}; found {found}",
        fix=f"`{rebuild_line(path, manifest)}` makes one for this machine; {check_line(path, manifest)}",
    )
