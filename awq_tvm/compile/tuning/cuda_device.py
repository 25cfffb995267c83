"""An NVIDIA GPU that measures the candidates of a pack, through its driver alone; packs carry this file.

Each trial runs in a child process, and the driver is touched nowhere else: what a kernel spoils is gone with its
context, and one that hangs is ended with the process.
"""

from __future__ import annotations

import io
import json
import math
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.tuning.cuda_driver import Gpu, best_arch
from awq_tvm.errors import AwqTvmError, TargetError

Array = np.ndarray[Any, Any]
Buffers = dict[str, Any]

COLD_BYTES = 100_000_000
"""So many bytes of weights are walked through at least, and twice what the second-level cache holds."""

LEAST_SAMPLES, LEAST_CALLS = 9, 32
"""Of each candidate, and calls of one sample, recorded as a graph."""


_NAN_BITS = 0x7FC0
"""Of bfloat16, which NumPy does not have: a pack holds such numbers as uint16."""


class Archive(Protocol):
    """A pack."""

    content: dict[str, Any]

    def read(self, name: str) -> bytes:
        """The content of a file."""


class CudaDevice:
    """The first GPU of this machine.

    Args:
        pack: to measure.
        folder: for its binaries.
        library: the driver.
        cold_bytes: see ``COLD_BYTES``.

    Raises:
        TargetError: there is no GPU, or the pack's code does not run on it.
    """

    def __init__(
        self, pack: Archive, folder: Path, *, library: str = "libcuda.so.1", cold_bytes: int = COLD_BYTES
    ) -> None:
        self._pack, self._folder, self._library, self._cold_bytes = pack, folder, library, cold_bytes
        self._limit = float(pack.content["limit"])
        self._operands: tuple[int, list[Array]] = (-1, [])
        self._table: dict[str, Any] = {}
        found = self._in_child(self._describe)
        if "name" not in found:
            raise TargetError("no NVIDIA GPU can be used here", where="this machine", why=str(found["why"]))
        wanted = str(pack.content["architecture"])
        if best_arch(found["arch"], [wanted]) is None:
            raise TargetError(
                "this pack is for another machine",
                where=pack.content["target"]["name"],
                why=f"it is for {wanted}, this GPU is {found['arch']}",
            )
        self.description = f"model name: {found['name']}\nmachine: {found['arch']}\n"

    def open(self, part: dict[str, Any]) -> None:
        """Unpack the binaries and read the operands of a part."""
        number = part["problem"]
        if self._operands[0] != number:
            names = self._pack.content["problems"][number]["arrays"]
            files = (io.BytesIO(self._pack.read(name)) for name in names)
            self._operands = number, [np.lib.format.read_array(file, allow_pickle=False) for file in files]
        self._table = json.loads(self._pack.read(part["library"]))
        for candidate in self._table["candidates"]:
            path = self._folder / Path(candidate["image"]).name
            path.write_bytes(self._pack.read(candidate["image"]))

    def measure(self, part: dict[str, Any], places: list[int], seconds: float) -> dict[str, Any]:
        """Check and time candidates of the part that is open, by their places."""
        chosen = [self._table["candidates"][part["kernels"][place]] for place in places]
        return self._in_child(lambda: self._measured(part, chosen, seconds))

    def load(self) -> float:
        """Processes that want to run here besides; what else the GPU does is not known."""
        return round(max(0.0, os.getloadavg()[0] - 1), 2)

    def _describe(self) -> dict[str, Any]:
        gpu = Gpu(self._library)
        return {"name": gpu.name, "arch": gpu.arch}

    def _measured(self, part: dict[str, Any], chosen: list[Any], seconds: float) -> dict[str, Any]:
        """In the child: an outcome, as JSON."""
        gpu = Gpu(self._library)
        gpu.pack = self._folder
        x, expected, allowed, *weights = self._operands[1]
        named = dict(zip(self._table["weights"], weights, strict=True))
        first: Buffers = {name: gpu.upload(array) for name, array in named.items()}
        for candidate in chosen:
            for m in dict.fromkeys((*part["checked_rows"], *part["rows"])):
                y = np.full((m, len(allowed)), _NAN_BITS if x.dtype == np.uint16 else np.nan, x.dtype)
                buffers = {**first, "x": gpu.upload(x[:m]), "y": gpu.upload(y), **_workspaces(gpu, candidate)}
                _start(gpu, candidate, m, buffers)
                found = _as_float(gpu.download(buffers["y"], y))
                error = float((np.abs(found - expected[:m]) / allowed).max())
                if not error <= 1:
                    return {"kind": "wrong", "why": f"off by {error:.2g} of what is allowed at M = {m}"}
        size = sum(array.nbytes for array in weights)
        count = max(2, -(-max(2 * gpu.l2_bytes, self._cold_bytes) // size))
        others = [
            {name: gpu.copy(buffer, named[name].nbytes) for name, buffer in first.items()}
            for _ in range(count - 1)
        ]
        share = seconds / 2 / len(part["rows"])
        cold, hot = [], []
        for m in part["rows"]:
            shared = {"x": gpu.upload(x[:m]), "y": gpu.upload(np.zeros((m, len(allowed)), x.dtype))}
            ready = [(candidate, {**shared, **_workspaces(gpu, candidate)}) for candidate in chosen]
            cold.append(
                _times(gpu, [_recorded(gpu, one, m, both, (first, *others)) for one, both in ready], share)
            )
            hot.append(_times(gpu, [_recorded(gpu, one, m, both, (first,)) for one, both in ready], share))
        return {"cold": _by_candidate(cold), "hot": _by_candidate(hot)}

    def _in_child(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a forked process says that has the time limit; why it says nothing, otherwise."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reader)
                os.write(writer, json.dumps(_said(work)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        answer = _read_until(reader, time.monotonic() + self._limit)
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # it may also have ended already
        _, status = os.waitpid(child, 0)
        if answer is None:
            return {"kind": "slow", "why": f"no result after {self._limit:g} s"}
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            why = (
                f"ended by {signal.Signals(number).name}"
                if number
                else f"ended with code {os.WEXITSTATUS(status)}"
            )
            return {"kind": "died", "why": why}
        return found


def _as_float(y: Array) -> Array:
    """Float64 of float16, or of bfloat16 as its bits."""
    if y.dtype == np.uint16:
        y = (y.astype(np.uint32) << 16).view(np.float32)
    return y.astype(np.float64)


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """All that is written until the other end is closed; None if that does not happen in time."""
    content = b""
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return content
        content += part
    return None


def _by_candidate(times: list[list[float]]) -> list[list[float]]:
    """From [M][candidate] to [candidate][M]."""
    return [list(mine) for mine in zip(*times, strict=True)]


def _said(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except AwqTvmError as error:
        return {"kind": "died", "why": f"{error.what}: {error.why}"[:400]}


def _workspaces(gpu: Gpu, candidate: dict[str, Any]) -> Buffers:
    """What its launches share, NaN throughout."""
    return {
        name: gpu.upload(np.full(size // 4, np.nan, np.float32))
        for name, size in candidate["workspaces"].items()
    }


def _start(gpu: Gpu, candidate: dict[str, Any], m: int, buffers: Buffers) -> None:
    image = gpu.load(Path(candidate["image"]).name)
    for fields in candidate["launches"][str(m)]:
        lists = {name: tuple(fields[name]) for name in ("arguments", "grid", "block")}
        gpu.launch(image, Launch(**{**fields, **lists}), buffers)


def _recorded(
    gpu: Gpu, candidate: dict[str, Any], m: int, shared: Buffers, copies: tuple[Buffers, ...]
) -> Callable[[], float]:
    """What gives microseconds of a call, from a graph that walks through the copies at least once."""
    rounds = math.ceil(LEAST_CALLS / len(copies))

    def start() -> None:
        for _ in range(rounds):
            for weights in copies:
                _start(gpu, candidate, m, {**shared, **weights})

    graph = gpu.graph(start)
    return lambda: 1e6 * gpu.seconds(graph) / (rounds * len(copies))


def _times(gpu: Gpu, contenders: list[Callable[[], float]], seconds: float) -> list[float]:
    """The lower quartile of each, which take turns; a round that does not count comes first."""
    samples: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender()
    end = time.monotonic() + seconds * len(contenders)
    while len(samples[0]) < LEAST_SAMPLES or time.monotonic() < end:
        for contender, mine in zip(contenders, samples, strict=True):
            mine.append(contender())
    return [float(np.quantile(mine, 0.25)) for mine in samples]
