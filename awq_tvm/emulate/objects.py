"""C++ to object files, each compiled once: what was compiled before is taken from a folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from awq_tvm.disk import refuse_full_disk
from awq_tvm.errors import TargetError

NATIVE = Path(__file__).parent / "native"
MESSAGE_LINES = 20
KEPT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Job:
    """One translation unit.

    Attributes:
        source: its path; what it includes lies in ``native``, or belongs to TVM or the compiler.
        flags: of the compiler, without the names of files.
        libraries: the object is for these: a new one is made where they change, as their headers may have.
    """

    source: Path
    flags: tuple[str, ...]
    libraries: tuple[Path, ...] = ()


def compiled_objects(jobs: Sequence[Job]) -> list[Path]:
    """The object of each job, as many compiled at a time as there are cores.

    Raises:
        TargetError: there is no C++ compiler, or it rejects a unit.
    """
    compiler, folder = find_compiler(), cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda job: _object(compiler, job, folder), jobs))
    _discard_old(folder, {path.name for path in objects})
    return objects


def cache_folder() -> Path:
    """Where objects are kept: ``emulator`` beside what else is kept for the user, see XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) / "awq_tvm" if base else Path.home() / ".cache" / "awq_tvm") / "emulator"


def find_compiler() -> str:
    """The C++ compiler on the path.

    Raises:
        TargetError: there is none.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise TargetError(
            "kernels cannot be executed here",
            where="the emulator",
            why="g++ is not on the path",
            fix="install it: apt-get install g++",
        )
    return compiler


def run_compiler(command: list[str]) -> None:
    """Run the compiler.

    Raises:
        TargetError: it rejects what it is given.
        ResourceError: the disk is full.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        refuse_full_disk(done.stderr, "the emulator, compiling kernels")
        lines = done.stderr.strip().splitlines()
        raise TargetError(
            "the C++ of the kernels does not compile",
            where="the emulator",
            why="\n".join(
                [line for line in lines if "error" in line][:MESSAGE_LINES] or lines[-MESSAGE_LINES:]
            ),
            fix="teach awq_tvm/emulate what the kernel uses",
        )


def _object(compiler: str, job: Job, folder: Path) -> Path:
    versions = map(_version, [Path(compiler), *job.libraries])
    known = "\0".join([*versions, _headers(), *job.flags, ""]).encode()
    found = folder / f"{hashlib.sha256(known + job.source.read_bytes()).hexdigest()}.o"
    try:
        # Its time is when it was last of use.
        os.utime(found)
        return found
    except FileNotFoundError:
        pass
    # Written beside and renamed: another process may compile the same, or be killed halfway.
    with tempfile.TemporaryDirectory(dir=folder) as own:
        part = Path(own) / "unit.o"
        run_compiler([compiler, *job.flags, "-c", str(job.source), "-o", str(part)])
        part.replace(found)
    return found


@functools.cache
def _version(tool: Path) -> str:
    """What tells one compiler or library from another."""
    path = tool.resolve()
    return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"


@functools.cache
def _headers() -> str:
    """The hash of every file that a unit may include from here."""
    digest = hashlib.sha256()
    for path in sorted(NATIVE.rglob("*")):
        if path.is_file() and path.suffix != ".cc":
            digest.update(path.relative_to(NATIVE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _discard_old(folder: Path, needed: set[str]) -> None:
    """Keep the objects used last, up to ``KEPT_BYTES``."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # Another process may discard the same meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(".o"):
                    found.append((entry.stat(), Path(entry.path)))
    left = KEPT_BYTES
    for info, path in sorted(found, key=lambda one: one[0].st_mtime, reverse=True):
        left -= info.st_size
        if left < 0 and path.name not in needed:
            path.unlink(missing_ok=True)
