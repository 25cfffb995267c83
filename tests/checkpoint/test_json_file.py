from __future__ import annotations

import os
from pathlib import Path

import pytest

from awq_tvm.checkpoint.json_file import MAX_DEPTH, parse_json_object, read_bounded
from awq_tvm.errors import CheckpointError


def test_parses_an_object() -> None:
    assert parse_json_object(b'{"a": [1, {"b": null}]}', "here") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff{}", "not UTF-8"),
        (b"{", "cannot parse"),
        (b"", "cannot parse"),
        (b"[1]", "not an object"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot parse"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "nested too deep"),
        (b'{"a": ' + b"[" * 200_000, "nested too deep"),
    ],
)
def test_refuses(raw: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_json_object(raw, "some place")
    assert caught.value.where == "some place"


def test_depth_limit_is_exact() -> None:
    nested = b'{"a": ' + b"[" * (MAX_DEPTH - 2) + b"]" * (MAX_DEPTH - 2) + b"}"
    assert "a" in parse_json_object(nested, "here")


def test_read_bounded(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5) == b"12345"
    with pytest.raises(CheckpointError, match=r"5 bytes; at most 4"):
        read_bounded(file, 4)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_bounded(tmp_path / "absent", 5)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_bounded(tmp_path, 5)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_bounded(tmp_path / "pipe", 5)
