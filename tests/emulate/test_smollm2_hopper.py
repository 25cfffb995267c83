"""SmolLM2-135M as it is compiled for Hopper, with its wgmma, whole in the emulator, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.targets import resolve
from tests.emulate.test_bundles import needs_this_machine
from tests.support.emulated_smollm2 import DOWN, GATE_UP, HEAD, OUT, QKV, TENSOR_CORES, Case, expect_agreement

pytestmark = [*needs_this_machine, pytest.mark.slow]

CASE = Case(
    resolve("h100"),
    TENSOR_CORES,
    fork=21,
    alone=[(QKV, 3101), (OUT, 4101), (GATE_UP, 1101), (DOWN, 201), (DOWN, 4101), (HEAD, 129)],
    float16_weights=True,  # for wgmma
)


def test_every_kernel_of_smollm2_agrees_with_pytorch(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    expect_agreement(CASE, tmp_path_factory, tmp_path)
