from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.made_once import made_once


def test_a_folder_is_filled_once_and_again_where_that_failed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "found").write_text(str(len(calls)))
        if len(calls) == 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        made_once(tmp_path_factory, "once", make)
    first, second = (made_once(tmp_path_factory, "once", make) for _ in range(2))
    assert first == second == calls[0]
    assert (first / "found").read_text() == "2"
    assert len(calls) == 2
