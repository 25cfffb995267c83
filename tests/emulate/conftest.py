from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_tvm.emulate import EmulatedKernels, build_kernels


@pytest.fixture(scope="module")
def kernels_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, str]], EmulatedKernels]:
    """Compile CUDA kernels for the emulator from their parameters, the same for all, and their bodies by name."""
    if shutil.which("g++") is None:
        pytest.skip("kernels run on the CPU through g++, not installed")

    def build(parameters: str, bodies: dict[str, str]) -> EmulatedKernels:
        source = "#include <cuda.h>\n" + "".join(
            f'extern "C" __global__ void __launch_bounds__(64) {name}({parameters}) {{\n{body}\n}}\n'
            for name, body in bodies.items()
        )
        return EmulatedKernels(build_kernels(source, "cuda", tmp_path_factory.mktemp("kernels")))

    return build


@pytest.fixture
def emulated(tmp_path: Path) -> Callable[..., EmulatedKernels]:
    """Compile a source for the emulator."""
    if shutil.which("g++") is None:
        pytest.skip("kernels run on the CPU through g++, not installed")

    def build(source: str, dialect: str = "cuda") -> EmulatedKernels:
        return EmulatedKernels(build_kernels(source, dialect, tmp_path))

    return build
