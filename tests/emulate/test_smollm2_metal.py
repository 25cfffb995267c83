"""SmolLM2-135M as it is compiled for Metal, whole in the emulator, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulate.test_bundles import needs_this_machine, target_of
from tests.support.emulated_smollm2 import Case, expect_agreement

pytestmark = [*needs_this_machine, pytest.mark.slow]

CASE = Case(target_of("metal"), [(33, "all"), (17, "all"), (9, "all"), (5, "all"), (2, "all")])


def test_every_kernel_of_smollm2_agrees_with_pytorch(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    expect_agreement(CASE, tmp_path_factory, tmp_path)
