"""Quantize a tiny model again and again, each time killed at another place, then resumed.

    python -m tests.quantize.killed_runs FOLDER points         at every place where files change
    python -m tests.quantize.killed_runs FOLDER random SEED    20 runs at random moments, some more than once

FOLDER holds `model` and `text.txt`. Prints one JSON object: how many runs were killed, and what went wrong. Runs are
forks of one process that has imported everything, or the imports would take most of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.quantize import quantize_checkpoint

# What Python tells of before it changes a folder; opening to write is told apart by its flags.
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def _change_counter(folder: Path, at_change: Callable[[], None]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(folder)):
            at_change()

    return hook


def _quantize(folder: Path) -> None:
    # Resuming where nothing is there yet begins; so a user may always say so.
    quantize_checkpoint(
        str(folder / "model"),
        folder / "q",
        method="awq+",
        calibration=str(folder / "text.txt"),
        samples=2,
        sequence_length=16,
        resume=True,
        options=AwqOptions(scale_steps=2, learn_steps=2, learn_norm_steps=2),
    )


def _start(folder: Path, kill_at: int | None = None) -> int:
    """Fork a run that kills itself before its kill_at-th change; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        left = kill_at

        def at_change() -> None:
            nonlocal left
            if left is not None:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(_change_counter(folder, at_change))
        _quantize(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(process: int) -> int:
    """0 for a run that ended well, 1 for an error, -9 for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


class _Trial:
    def __init__(self, folder: Path) -> None:
        self.folder, self.killed, self.wrong = folder, 0, list[str]()
        started = time.monotonic()
        assert _wait(_start(folder)) == 0
        self.seconds = time.monotonic() - started
        self.expected = _hashes(folder / "q")
        self.clean()

    def clean(self) -> None:
        for path in self.folder.glob("q*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def finish(self, name: str) -> None:
        """Resume what was killed, and compare."""
        code = 0 if (self.folder / "q").exists() else _wait(_start(self.folder))
        if code:
            self.wrong.append(f"{name}: resuming ended with {code}")
        elif _hashes(self.folder / "q") != self.expected:
            self.wrong.append(f"{name}: the result differs")
        self.clean()


def _at_points(trial: _Trial) -> None:
    point = 0
    while (code := _wait(_start(trial.folder, kill_at=point))) != 0:
        if code != -signal.SIGKILL:
            trial.wrong.append(f"point {point}: the run ended with {code}")
        trial.killed += 1
        trial.finish(f"point {point}")
        point += 1
    trial.finish("not killed")


def _at_random(trial: _Trial, seed: int) -> None:
    generator = random.Random(seed)
    for number in range(20):
        for _ in range(generator.randint(1, 3)):
            if (trial.folder / "q").exists():
                break
            process = _start(trial.folder)
            time.sleep(generator.random() * trial.seconds)
            os.kill(process, signal.SIGKILL)
            code = _wait(process)
            if code not in (0, -signal.SIGKILL):
                trial.wrong.append(f"random {number}: the run ended with {code}")
            trial.killed += code == -signal.SIGKILL
        trial.finish(f"random {number}")


def main() -> None:
    torch.set_num_threads(1)
    trial = _Trial(Path(sys.argv[1]).resolve())
    if sys.argv[2] == "points":
        _at_points(trial)
    else:
        _at_random(trial, int(sys.argv[3]))
    print(json.dumps({"killed": trial.killed, "wrong": trial.wrong}))


if __name__ == "__main__":
    main()
