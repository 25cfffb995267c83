"""What all tests share: the root of the repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.golden import compare


@pytest.fixture(scope="session", autouse=True)
def no_records_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tuned records that lie on this machine must not change what a test compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what tests found into tests/golden, to be reviewed",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of a name in tests/golden, or write it there."""
    folder = Path(__file__).resolve().parent / "golden"
    update = bool(request.config.getoption("--update-golden"))
    return lambda name, text: compare(folder / name, text, update=update)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml; tests that need a clone rather than an installed package use it."""
    return Path(__file__).resolve().parent.parent
