from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_tvm.checkpoint.gguf_header import GgufHeader, GgufTensor, parse_header
from awq_tvm.errors import AwqTvmError, CheckpointError, UnsupportedError


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


FIELDS = [
    field(b"s", 8, text("höhe".encode())),
    field(b"u8", 0, b"\x07"),
    field(b"i32", 5, struct.pack("<i", -5)),
    field(b"f32", 6, struct.pack("<f", 0.5)),
    field(b"yes", 7, b"\x01"),
    field(b"u64", 10, struct.pack("<Q", 1 << 40)),
    field(b"strings", 9, array(8, 2, text(b"a") + text(b""))),
    field(b"numbers", 9, array(5, 3, struct.pack("<3i", 1, -2, 3))),
    field(b"bools", 9, array(7, 2, b"\x01\x00")),
    field(b"empty", 9, array(4, 0, b"")),
]
TENSORS = [tensor(b"a", [4, 2]), tensor(b"b", [3], 1, 32)]


def gguf_bytes(
    fields: list[bytes] = FIELDS,
    tensors: list[bytes] = TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    field_count: int | None = None,
    tensor_count: int | None = None,
    tail: bytes = bytes(64),
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(fields) if field_count is None else field_count,
    )
    return magic + struct.pack("<IQQ", version, *counts) + b"".join(fields) + b"".join(tensors) + tail


def parse(content: bytes) -> GgufHeader:
    with mmap.mmap(-1, max(1, len(content))) as data:
        data[: len(content)] = content
        return parse_header(data, Path("x.gguf"))


def test_good_twin() -> None:
    content = gguf_bytes()
    header = parse(content)
    assert header.metadata == {
        "s": "höhe",
        "u8": 7,
        "i32": -5,
        "f32": 0.5,
        "yes": True,
        "u64": 1 << 40,
        "strings": ["a", ""],
        "numbers": [1, -2, 3],
        "bools": [True, False],
        "empty": [],
    }
    assert header.tensors == {"a": GgufTensor(0, (2, 4), 0), "b": GgufTensor(1, (3,), 32)}
    assert header.data_start % 32 == 0
    assert 0 <= header.data_start - (len(content) - 64) < 32
    assert parse(gguf_bytes(version=2)).metadata == header.metadata


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"GGML" + gguf_bytes()[4:], CheckpointError, "not a GGUF file"),
        (gguf_bytes(version=1), UnsupportedError, "version 1"),
        (gguf_bytes(version=3 << 24), UnsupportedError, "big-endian"),
        (gguf_bytes(field_count=HUGE), CheckpointError, "metadata fields"),
        (gguf_bytes(tensor_count=HUGE), CheckpointError, "tensors"),
        (gguf_bytes(tensor_count=3), CheckpointError, "."),
        (gguf_bytes([field(b"k", 8, struct.pack("<Q", HUGE))]), CheckpointError, "string bytes"),
        (gguf_bytes([struct.pack("<Q", HUGE)]), CheckpointError, "string bytes"),
        (gguf_bytes([field(b"k" * 70_000, 0, b"\0")]), CheckpointError, "name is too long"),
        (gguf_bytes([field(b"\xff", 0, b"\0")]), CheckpointError, "not UTF-8"),
        (gguf_bytes([field(b"k", 13, b"\0")]), CheckpointError, "unknown type"),
        (gguf_bytes([field(b"k", 9, array(9, 1, b""))]), CheckpointError, "array of unknown type"),
        (gguf_bytes([field(b"k", 9, array(8, HUGE, b""))]), CheckpointError, "strings in 'k'"),
        (gguf_bytes([field(b"k", 9, array(4, HUGE, b""))]), CheckpointError, "numbers in 'k'"),
        (gguf_bytes([FIELDS[0], FIELDS[0]]), CheckpointError, "key appears twice"),
        (gguf_bytes(tensors=[TENSORS[0], TENSORS[0]]), CheckpointError, "tensor appears twice"),
        (gguf_bytes(tensors=[tensor(b"a", [])]), CheckpointError, "impossible rank"),
        (gguf_bytes(tensors=[tensor(b"a", [1] * 5)]), CheckpointError, "impossible rank"),
        (gguf_bytes([field(b"general.alignment", 4, struct.pack("<I", 0))]), CheckpointError, "alignment"),
        (gguf_bytes([field(b"general.alignment", 4, struct.pack("<I", 24))]), CheckpointError, "alignment"),
        (gguf_bytes([field(b"general.alignment", 8, text(b"32"))]), CheckpointError, "alignment"),
        (gguf_bytes(tail=b"")[:-5], CheckpointError, "cut short"),
    ],
)
def test_refuses(content: bytes, kind: type[AwqTvmError], message: str) -> None:
    parse(gguf_bytes())  # the good twin
    with pytest.raises(kind, match=message) as caught:
        parse(content)
    assert "x.gguf" in (caught.value.where or "")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_flipped_or_cut_byte_escapes_as_another_error(data: Any) -> None:
    content = bytearray(gguf_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(8, len(content)))
    try:
        header = parse(bytes(content[:cut]))
    except AwqTvmError:
        return
    assert len(header.metadata) <= 10
    assert header.data_start <= cut + (1 << 20)
