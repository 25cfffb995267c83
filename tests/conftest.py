"""What all tests share: the root of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml; tests that need a clone rather than an installed package use it."""
    return Path(__file__).resolve().parent.parent
