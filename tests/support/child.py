"""Modules of the tests in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def output_of(module: str, *arguments: object) -> str:
    """What ``python -m module`` prints; it has to end well."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
