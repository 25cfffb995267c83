"""What all tests share: the root of the repository, and the cores of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.golden import compare


def share_the_cores(processes: int) -> None:
    """Leave each of several processes of tests, and what they start, its share of the cores as threads.

    More threads than cores would wait for each other: those of TVM do so busily, and each is bound to a core that
    the other processes take as well. Libraries read this as they are loaded; what the user says goes first.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    threads = str(max(1, cores // processes))
    for name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ.setdefault(name, threads)
    os.environ.setdefault("TVM_BIND_THREADS", "0")


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share_the_cores(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


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
