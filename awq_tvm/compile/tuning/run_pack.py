"""Measure a pack of candidates on the device: ``python PACK [RESULTS]``.

This file travels in the pack. The device needs TVM's runtime wheel and NumPy, an NVIDIA GPU its driver and NumPy, no
compiler, no network and nothing else of ours. Every candidate runs in a child process with a time limit, and its
numbers are checked before its time counts. What was measured is on the disk at once; a run that was broken off goes
on where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, BinaryIO

from awq_tvm.bundle.machine import architecture, parse_cpuinfo
from awq_tvm.compile.tuning.sealed_line import sealed, unsealed
from awq_tvm.errors import AwqTvmError, BundleError, ResourceError, TargetError, UsageError

if TYPE_CHECKING:
    from awq_tvm.compile.tuning.cuda_device import CudaDevice

SCHEMA_VERSION = 1
CONTENT, CONTENT_SEAL = "pack.json", "pack.sha256"


class Pack:
    """The archive, every file of it checked.

    Args:
        path: of it.

    Raises:
        BundleError: it is damaged, no pack, or of another version.

    Attributes:
        id: hash of its table of contents.
        content: the table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            table = self._archive.read(CONTENT)
            self.id = hashlib.sha256(table).hexdigest()
            if self._archive.read(CONTENT_SEAL).decode() != self.id:
                raise self._damaged(f"{CONTENT} was changed")
            self.content: dict[str, Any] = json.loads(table)
            if self.content["schema_version"] != SCHEMA_VERSION:
                raise self._damaged(
                    f"its version is {self.content['schema_version']}, this is {SCHEMA_VERSION}"
                )
            listed = {CONTENT, CONTENT_SEAL, *self.content["files"]}
            strange = listed.symmetric_difference(self._archive.namelist())
            if strange:
                raise self._damaged(f"missing, or not listed: {', '.join(sorted(strange))[:200]}")
            for name, digest in self.content["files"].items():
                if self._digest(name) != digest:
                    raise self._damaged(f"{name} was changed")
        except (zipfile.BadZipFile, zlib.error, OSError, KeyError, ValueError, EOFError) as error:
            raise self._damaged(str(error)) from error

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return self._archive.read(name)

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._archive.open(name) as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()

    def _damaged(self, why: str) -> BundleError:
        return BundleError(
            "this pack is damaged, or no pack for tuning", where=str(self.path), why=why, fix="copy it again"
        )


class Device:
    """This machine with TVM's runtime.

    Args:
        pack: to measure.
        folder: for its libraries.

    Raises:
        TargetError: the code of the pack cannot run here, or TVM's runtime is not installed.
        BundleError: another version of TVM is.
    """

    def __init__(self, pack: Pack, folder: Path) -> None:
        content = pack.content
        here = architecture()
        if here != content["architecture"]:
            raise _other_machine(content, f"it is for {content['architecture']}, this machine is {here}")
        os.environ["TVM_USE_RUNTIME_LIB"] = "1"
        try:
            import tvm
        except ImportError as error:
            raise TargetError(
                "TVM's runtime is needed",
                where="this Python",
                why=str(error),
                fix=f"pip install {content['install']}",
            ) from error
        if tvm.__version__ != content["tvm"]:
            raise BundleError(
                "another version of TVM is installed",
                where="this Python",
                why=f"the pack was built by {content['tvm']}, here is {tvm.__version__}",
                fix=f"pip install {content['install']}",
            )
        self._tvm, self._pack, self._folder = tvm, pack, folder
        self._problem, self._operands = -1, list[Any]()
        self._libraries: dict[str, Any] = {}
        self._library: Any = None
        self.description = self._describe()
        lacking = sorted(set(content["features"]) - parse_cpuinfo(self.description))
        if lacking:
            raise _other_machine(content, f"this machine lacks {', '.join(lacking)}")

    def open(self, part: dict[str, Any]) -> None:
        """Load the library and the operands of a part."""
        if self._problem != part["problem"]:
            self._operands = []
            self._operands = [
                self._tensor(name) for name in self._pack.content["problems"][part["problem"]]["arrays"]
            ]
            self._problem = part["problem"]
        self._library = self._load(part["library"])

    def measure(self, part: dict[str, Any], places: list[int], seconds: float) -> dict[str, Any]:
        """Check and time candidates of the part that is open, by their places."""
        from awq_tvm.compile.tuning import device_plan

        chosen = [part["kernels"][place] for place in places]
        limit = self._pack.content["limit"]
        plan = device_plan.plan_of(
            chosen,
            part["rows"],
            part["checked_rows"],
            threads=self._pack.content["threads"],
            limit=limit,
            seconds=seconds,
        )
        times = self._tvm.runtime.tensor(device_plan.room_for_times(chosen, part["rows"]))
        status = self._tvm.runtime.tensor(device_plan.room_for_status())
        x, expected, allowed, *weights = self._operands
        self._library["measure"](
            self._tvm.runtime.tensor(plan), x, expected, allowed, times, status, *weights
        )
        return device_plan.outcome_of(status.numpy(), times.numpy(), limit)

    def load(self) -> float:
        """Processes that want to run here besides."""
        return round(max(0.0, os.getloadavg()[0] - int(self._pack.content["threads"])), 2)

    def _describe(self) -> str:
        import numpy as np

        from awq_tvm.compile.tuning.device_plan import DESCRIPTION_BYTES, text_of

        text = self._tvm.runtime.tensor(np.zeros(DESCRIPTION_BYTES, np.uint8))
        self._load(self._pack.content["parts"][0]["library"])["describe"](text)
        return text_of(text.numpy().tobytes())

    def _load(self, name: str) -> Any:
        # Each once: a library that is loaded must not be written over.
        if name not in self._libraries:
            path = self._folder / Path(name).name
            path.write_bytes(self._pack.read(name))
            self._libraries[name] = self._tvm.runtime.load_module(str(path))
        return self._libraries[name]

    def _tensor(self, name: str) -> Any:
        import numpy as np

        file = io.BytesIO(self._pack.read(name))
        return self._tvm.runtime.tensor(np.lib.format.read_array(file, allow_pickle=False))


def open_device(pack: Pack, folder: Path) -> Device | CudaDevice:
    """This machine, or its GPU.

    Raises:
        AwqTvmError: see ``Device`` and ``CudaDevice``.
    """
    if pack.content["target"]["kind"] == "cuda":
        from awq_tvm.compile.tuning.cuda_device import CudaDevice

        return CudaDevice(pack, folder)
    return Device(pack, folder)


def _other_machine(content: dict[str, Any], why: str) -> TargetError:
    return TargetError("this pack is for another machine", where=content["target"]["name"], why=why)


def measure_part(device: Device | CudaDevice, part: dict[str, Any], search: dict[str, Any]) -> dict[str, Any]:
    """Time all candidates of a part beside the default, a few at once, and the best few once more.

    Args:
        device: this machine.
        part: of the pack.
        search: how many of them, and for how long.
    """
    device.open(part)
    trials: list[dict[str, Any]] = []
    ratios: dict[int, float] = {}

    def measure(places: list[int]) -> bool:
        outcome = device.measure(part, [0, *places], search["seconds"])
        if "cold" not in outcome and len(places) > 1:
            # One of them does not survive: each by itself, if the default does.
            return measure([]) and all([measure([place]) for place in places])
        trials.append({"places": [0, *places], "outcome": outcome})
        if "cold" in outcome:
            means = [geometric_mean(times) for times in outcome["cold"]]
            ratios.update({place: mean / means[0] for place, mean in zip(places, means[1:], strict=True)})
        return "cold" in outcome or bool(places)

    others = [place for place in range(1, len(part["kernels"])) if part["kernels"][place] is not None]
    count = search["at_once"]
    batches = [others[start : start + count] for start in range(0, len(others), count)] or [[]]
    works = all(measure(batch) for batch in batches)
    final = None
    if works:
        places = [0, *sorted(ratios, key=lambda place: ratios[place])[: search["finalists"]]]
        final = {"places": places, "outcome": device.measure(part, places, search["seconds_at_last"])}
    return {"trials": trials, "final": final}


def run(pack_path: Path, results: Path) -> None:
    """Measure what the results do not hold yet.

    Raises:
        AwqTvmError: see ``Pack`` and ``Device``; or the results cannot be written or are of another pack.
    """
    pack = Pack(pack_path)
    with tempfile.TemporaryDirectory() as folder:
        device = open_device(pack, Path(folder))
        with _opened(results) as file:
            done = _begin(file, pack, device, results)
            parts = pack.content["parts"]
            for number, part in enumerate(parts):
                if number in done:
                    continue
                found = measure_part(device, part, pack.content["search"])
                line = {"pack": pack.id, "part": number, "at": _now(), "load": device.load(), **found}
                _add(file, line)
                _say(f"{number + 1}/{len(parts)}  {part['title']}: {_standing(found)}")
    _say(f"done; take {results} home: python -m awq_tvm tune --import {results.name}")


def _opened(path: Path) -> BinaryIO:
    try:
        file = path.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ResourceError(
            "another run is writing these results", where=str(path), fix="wait for it"
        ) from error
    except OSError as error:
        raise ResourceError("the results cannot be written", where=str(path), why=error.strerror) from error
    return file


def _begin(file: BinaryIO, pack: Pack, device: Device | CudaDevice, path: Path) -> set[int]:
    """The parts that are done; a header where there is none."""
    from awq_tvm.compile.tuning.device_plan import described, processor_name

    file.seek(0)
    content = file.read()
    if not content:
        carried = {name: pack.content[name] for name in ("target", "threads", "tvm", "parts", "problems")}
        machine = processor_name(described(device.description))
        features = sorted(parse_cpuinfo(device.description))
        header = {"kind": "awq_tvm tuning results", "schema_version": SCHEMA_VERSION, "pack": pack.id}
        _add(file, {**header, "at": _now(), "machine": machine, "features": features, **carried})
        return set()
    if not content.endswith(b"\n"):
        file.write(b"\n")  # a line that was torn is left as it is, and measured again
    done = set()
    for number, line in enumerate(content.splitlines()):
        try:
            body = unsealed(line)
        except ValueError as error:
            if number:
                continue
            raise UsageError("this file holds something else", where=str(path), why=str(error)) from error
        if body.get("pack") != pack.id:
            raise UsageError(
                "these are results of another pack", where=str(path), fix="name another file for the results"
            )
        if number:
            done.add(body["part"])
    return done


def _add(file: BinaryIO, body: dict[str, Any]) -> None:
    try:
        file.write(sealed(body))
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise ResourceError("the results cannot be written", where=file.name, why=error.strerror) from error


def _standing(found: dict[str, Any]) -> str:
    failed = [trial["outcome"] for trial in found["trials"] if "kind" in trial["outcome"]]
    words = f", {len(failed)} did not survive" if failed else ""
    if found["final"] is None or "kind" in found["final"]["outcome"]:
        return f"the default cannot be measured{words}"
    cold = [geometric_mean(times) for times in found["final"]["outcome"]["cold"]]
    return f"default {cold[0]:.1f} us, best {min(cold):.1f}{words}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run, and return the exit code."""
    if len(arguments) > 2 or any(word.startswith("-") for word in arguments[1:]):
        _say(
            "usage: python PACK [RESULTS]\n\nMeasures the pack on this machine; by default into PACK.results.jsonl"
        )
        return 0 if arguments[1:] in (["-h"], ["--help"]) else 2
    pack = Path(arguments[0])
    try:
        run(pack, Path(arguments[1]) if arguments[1:] else pack.with_name(f"{pack.name}.results.jsonl"))
    except AwqTvmError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was measured is kept, and the same command goes on from there")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
