"""Where tuned records lie: shipped with the program, and the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import awq_tvm.schedules
from awq_tvm.compile.tuning.record_file import SUFFIX, record_files


def shipped_folder() -> Path:
    """The records that came with this version."""
    return Path(awq_tvm.schedules.__file__).parent / "tuned"


def user_folder() -> Path:
    """Where `tune` writes by default: $XDG_DATA_HOME/awq_tvm/tuned, ~/.local/share where that is not set."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ".local" / "share"
    return base / "awq_tvm" / "tuned"


def usual_files() -> list[Path]:
    """The files of both folders."""
    return [path for place in (shipped_folder(), user_folder()) for path in record_files(place)]


def file_of(folder: Path, fingerprint: str) -> Path:
    """The file of a target's records in a folder."""
    return folder / f"{fingerprint}{SUFFIX}"
