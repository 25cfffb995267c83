"""SmolLM2-135M as a bundle of this machine, for slow tests of what runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import AwqTvmError
from tests.cli.conftest import awq_tvm


def make_demo_bundle(folder: Path, *others: str) -> Path:
    """Round the demo model to 4 bits and compile it; the test is skipped where the model cannot be had.

    Args:
        folder: where to.
        others: targets for which it is compiled too, into folders beside the bundle that have their names.
    """
    try:
        open_checkpoint("demo")
    except AwqTvmError as error:
        pytest.skip(f"the model cannot be had: {error.what}")
    for command in (
        ("quantize", "demo", "-o", folder / "quantized", "--method", "rtn"),
        ("compile", folder / "quantized", "-o", folder / "bundle"),
        *(("compile", folder / "quantized", "-o", folder / name, "--target", name) for name in others),
    ):
        done = awq_tvm(*command, timeout=1500)
        assert done.returncode == 0, done.stderr
    return folder / "bundle"
