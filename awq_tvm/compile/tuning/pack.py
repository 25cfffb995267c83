"""Packs: all candidates built here into one archive that a device measures by itself.

A pack is a zip file that Python runs: ``run_pack.py`` and what it needs of us, libraries of candidates, and operands
with the numbers that must come of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import awq_tvm
from awq_tvm.bundle.machine import architecture
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.tuning.cuda_candidates import build_cuda_candidates
from awq_tvm.compile.tuning.device_library import build_device_library, check_device
from awq_tvm.compile.tuning.local import LIMIT_S
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import KernelKey
from awq_tvm.compile.tuning.run_pack import CONTENT, CONTENT_SEAL, SCHEMA_VERSION
from awq_tvm.compile.tuning.search import AT_ONCE, FINALISTS, SECONDS, SECONDS_AT_LAST, Search, likely_places
from awq_tvm.compile.tuning.tuner import DEFAULT_TRIALS, title
from awq_tvm.errors import ResourceError, TargetError
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.rule import Part
from awq_tvm.targets import Target

CARRIED = (
    "awq_tvm/errors.py",
    "awq_tvm/bundle/machine.py",
    "awq_tvm/compile/toolchain/launch.py",
    "awq_tvm/compile/tuning/cuda_device.py",
    "awq_tvm/compile/tuning/cuda_driver.py",
    "awq_tvm/compile/tuning/device_plan.py",
    "awq_tvm/compile/tuning/run_pack.py",
    "awq_tvm/compile/tuning/sealed_line.py",
)
"""Our own files that run on the device; of others they import NumPy and TVM's runtime alone."""

_PACKAGES = (
    "awq_tvm",
    "awq_tvm/bundle",
    "awq_tvm/compile",
    "awq_tvm/compile/toolchain",
    "awq_tvm/compile/tuning",
)
_MAIN = "import sys\nfrom awq_tvm.compile.tuning.run_pack import main\nsys.exit(main(sys.argv))\n"
_WHEELS = ("apache-tvm", "apache-tvm-ffi")


@dataclass
class PackReport:
    """What a pack holds.

    Attributes:
        parts: kernels and ranges of M.
        candidates: of all of them.
        known: parts that had a record before and were left out.
        refused: candidates that could not be built, and why.
        bytes: of the file.
    """

    parts: int = 0
    candidates: int = 0
    known: int = 0
    refused: list[str] = field(default_factory=list)
    bytes: int = 0


def write_pack(
    problems: Sequence[Problem],
    target: Target,
    file: Path,
    *,
    known: Collection[KernelKey] = (),
    trials: int = DEFAULT_TRIALS,
    threads: int = 1,
    limit: float = LIMIT_S,
    seconds: float = SECONDS,
    progress: ProgressCallback = ignore_progress,
) -> PackReport:
    """Build the likeliest candidates of every part that has no record yet into one archive.

    Args:
        problems: all of ``target``.
        target: the device.
        file: to write; there is none where there is nothing to measure.
        known: parts with these keys are left out.
        trials: candidates for each part at most, the default among them.
        threads: that kernels run on.
        limit: seconds that the device gives the candidates that it measures together.
        seconds: of timing, for each candidate.
        progress: told of each part.

    Raises:
        TargetError: the target cannot be built for, or measured from afar.
        ResourceError: the file exists, or cannot be written.
    """
    on_gpu = target.kind == "cuda"
    if on_gpu:
        Nvcc.find()
    else:
        check_device(target)
    if file.exists():
        raise ResourceError("this file exists already", where=str(file), fix="name another, or remove it")
    report = PackReport()
    todo = {
        problem: [part for part in problem.parts if problem.key(part) not in known] for problem in problems
    }
    count = sum(map(len, todo.values()))
    report.known = sum(len(problem.parts) for problem in problems) - count
    if not count:
        return report
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": target.as_dict(),
        "architecture": target.sm_arch if on_gpu else architecture(str(target.tvm_target["mtriple"])),
        "features": sorted(target.features),
        "tvm": _tvm_version(),
        # A GPU is measured through its driver.
        "install": " ".join([f"{name}=={version(name)}" for name in _WHEELS if not on_gpu] + ["numpy"]),
        "threads": threads,
        "limit": limit,
        "search": {
            "seconds": seconds,
            "seconds_at_last": seconds / SECONDS * SECONDS_AT_LAST,
            "at_once": AT_ONCE,
            "finalists": FINALISTS,
        },
        "problems": [],
        "parts": [],
    }
    with _archive(file) as archive, tempfile.TemporaryDirectory() as folder:
        writer = _Writer(archive)
        writer.add("__main__.py", _MAIN.encode())
        root = Path(awq_tvm.__file__).parents[1]
        for name in CARRIED:
            writer.add(name, (root / name).read_bytes())
        for package in _PACKAGES:
            writer.add(f"{package}/__init__.py", b"")
        for problem, parts in todo.items():
            if not parts:
                continue
            operands: dict[bool, int] = {}
            for part in parts:
                if part.rounds_weights not in operands:
                    alike = [one for one in parts if one.rounds_weights == part.rounds_weights]
                    operands[part.rounds_weights] = len(content["problems"])
                    content["problems"].append(_add_operands(writer, problem, alike, content["problems"]))
                progress(ProgressEvent("pack", report.parts, count, title(problem, part)))
                entry = _add_part(
                    writer, problem, part, trials, Path(folder) / f"part-{report.parts}.so", report
                )
                content["parts"].append({"problem": operands[part.rounds_weights], **entry})
                report.parts += 1
        table = json.dumps({**content, "files": writer.digests}, sort_keys=True).encode()
        archive.writestr(CONTENT, table, zipfile.ZIP_DEFLATED)
        archive.writestr(CONTENT_SEAL, hashlib.sha256(table).hexdigest())
    report.bytes = file.stat().st_size
    return report


def _tvm_version() -> str:
    import tvm

    return str(tvm.__version__)


class _Writer:
    """Adds files to an archive and keeps their hashes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.digests: dict[str, str] = {}

    def add(self, name: str, content: bytes, *, compress: bool = True) -> None:
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        self._archive.writestr(name, content, method)
        self.digests[name] = hashlib.sha256(content).hexdigest()


def _add_operands(
    writer: _Writer, problem: Problem, parts: Sequence[Part], before: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """X, what y must be, how far it may be off, and the weights.

    NumPy has no bfloat16, and the device nothing but NumPy: such numbers travel as their bits, in uint16.

    Args:
        writer: of the archive.
        problem: the linear.
        parts: of it, all of which round their weights, or none.
        before: what this returned before; the weights of the same linear are there already.
    """
    rows = max(max(*part.timed_rows, *part.checked_rows) for part in parts)
    numbers = Numbers(problem, rows, parts[0].rounds_weights)
    own = problem.to_json()
    others = [one["arrays"] for one in before if one["problem"] == own]
    there = others[0][-len(numbers.packed) :] if others else []
    names = []
    for place, array in enumerate((numbers.x, *numbers.device_arrays(), *(() if there else numbers.packed))):
        name = f"problem-{len(before)}/{place}.npy"
        buffer = io.BytesIO()
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        np.save(buffer, np.ascontiguousarray(bits), allow_pickle=False)
        writer.add(name, buffer.getvalue(), compress=False)  # random numbers do not get smaller
        names.append(name)
    return {"problem": own, "arrays": [*names, *there]}


def _add_part(
    writer: _Writer, problem: Problem, part: Part, trials: int, path: Path, report: PackReport
) -> dict[str, Any]:
    places = (0, *islice(likely_places(Search(problem, part)), trials - 1))
    configs = [to_fields(part.configs[place], part.fields) for place in places]
    if problem.target.kind == "cuda":
        built, files = build_cuda_candidates(problem, part, configs, path.with_suffix(".json"))
    else:
        built = build_device_library(problem, configs, path)
        files = (path,)
    words = title(problem, part)
    if 0 in built.refused:
        raise TargetError(f"the default of {words} cannot be built", why=built.refused[0].why)
    report.refused += [f"{words}, {configs[place]}: {why.why}" for place, why in built.refused.items()]
    report.candidates += len(configs)
    for made in files:
        writer.add(made.name, made.read_bytes())
        made.unlink()
    return {
        "title": words,
        "key": problem.key(part).model_dump(mode="json"),
        "library": built.path.name,
        "configs": configs,
        "kernels": [built.kernels.get(place) for place in range(len(configs))],
        "rows": list(part.timed_rows),
        "checked_rows": list(part.checked_rows),
    }


@contextmanager
def _archive(file: Path) -> Iterator[zipfile.ZipFile]:
    """An archive that appears whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as raw:
            with zipfile.ZipFile(raw, "w") as archive:
                yield archive
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(file)
    except OSError as error:
        raise ResourceError(
            "the pack cannot be written", where=str(file), why=error.strerror or str(error)
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
