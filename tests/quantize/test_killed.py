"""kill -9 at each place where the journal or the output changes, and at random ones: the result is the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quantize.tiny_models import save_tiny_model, write_text


def _trial(folder: Path, *arguments: object) -> dict[str, object]:
    save_tiny_model(folder / "model")
    write_text(folder / "text.txt")
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, "-m", "tests.quantize.killed_runs", str(folder), *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, object] = json.loads(process.stdout.splitlines()[-1])
    assert found["wrong"] == [], process.stderr
    return found


@pytest.mark.slow
def test_every_write_point(tmp_path):
    """At least the text, two blocks, three streams and three indices are each opened and renamed."""
    assert _trial(tmp_path, "points")["killed"] >= 18


@pytest.mark.slow
def test_twenty_random_moments(tmp_path):
    assert _trial(tmp_path, "random", 0)["killed"] >= 10
