from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_tvm.emulate import EmulatedKernels, build_kernels


@pytest.fixture
def emulated(tmp_path: Path) -> Callable[..., EmulatedKernels]:
    """Compile a source for the emulator."""
    if shutil.which("g++") is None:
        pytest.skip("kernels run on the CPU through g++, not installed")

    def build(source: str, dialect: str = "cuda") -> EmulatedKernels:
        return EmulatedKernels(build_kernels(source, dialect, tmp_path))

    return build
