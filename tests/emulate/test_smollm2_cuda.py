"""SmolLM2-135M as it is compiled for stock CUDA, whole in the emulator, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.targets import resolve
from tests.emulate.test_bundles import needs_this_machine
from tests.support.emulated_smollm2 import DOWN, GATE_UP, OUT, QKV, TENSOR_CORES, Case, expect_agreement

pytestmark = [*needs_this_machine, pytest.mark.slow]

CASE = Case(
    resolve("cuda"), TENSOR_CORES, fork=21, alone=[(QKV, 1301), (OUT, 2101), (GATE_UP, 401), (DOWN, 2101)]
)


def test_every_kernel_of_smollm2_agrees_with_pytorch(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    expect_agreement(CASE, tmp_path_factory, tmp_path)
