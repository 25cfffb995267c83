"""The head of a GGUF file: metadata and tensor table, each count proved against the file before it is used.

The `gguf` package's reader trusts the counts it finds (an array length of 2 ** 60 makes it loop until memory
ends), so the head is parsed here; names of types and the dequantization come from that package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm.errors import CheckpointError, UnsupportedError

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 65_535
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Fewest bytes one entry can take: a count above (bytes left) / this is a lie.
_SMALLEST_FIELD = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table.

    Attributes:
        type_id: ggml's number for the storage type.
        shape: row-major, as numpy has it (the file lists dimensions the other way round).
        offset: where the data begins, from the start of the data section.
    """

    type_id: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the data.

    Attributes:
        metadata: key -> str, int, float, bool, or a list of these.
        tensors: GGUF name -> GgufTensor, in file order.
        data_start: where the data section begins, in bytes.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int


def parse_header(data: mmap.mmap, path: Path) -> GgufHeader:
    """Parse the head of a mapped GGUF file.

    Raises:
        CheckpointError: if it is not GGUF, cut short, or a count, length or type in it cannot be true.
        UnsupportedError: for another version or byte order.
    """
    cursor = _Cursor(data, path)
    if data[:4] != b"GGUF":
        raise cursor.error("not a GGUF file", f"it begins with {bytes(data[:4])!r}, needed b'GGUF'", at=0)
    cursor.position = 4
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        why = f"version {version}" if version & 0xFFFF else "the byte order is big-endian"
        raise UnsupportedError(
            "a kind of GGUF that is not read",
            where=str(path),
            why=f"{why}; needed: little-endian version 2 or 3",
        )
    tensor_count, field_count = cursor.scalar("Q"), cursor.scalar("Q")
    cursor.check_count(field_count, _SMALLEST_FIELD, "metadata fields")
    metadata: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.string(_MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.error("a metadata key appears twice", repr(key))
        metadata[key] = cursor.value(cursor.scalar("I"), key)
    cursor.check_count(tensor_count, _SMALLEST_TENSOR, "tensors")
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        name = cursor.string(_MAX_NAME_BYTES)
        if name in tensors:
            raise cursor.error("a tensor appears twice", repr(name))
        tensors[name] = _tensor(cursor, name)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.error(
            "general.alignment makes no sense", f"{alignment!r:.80}; it must be a power of two up to 2 ** 20"
        )
    return GgufHeader(metadata, tensors, -(-cursor.position // alignment) * alignment)


def _tensor(cursor: _Cursor, name: str) -> GgufTensor:
    dimensions = cursor.scalar("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.error("a tensor has an impossible rank", f"{name!r}: {dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    return GgufTensor(cursor.scalar("I"), shape, cursor.scalar("Q"))


class _Cursor:
    """Reads values one after the other and never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0

    def error(self, what: str, why: str, at: int | None = None) -> CheckpointError:
        position = self.position if at is None else at
        return CheckpointError(
            what, where=f"{self.path}, byte {position}", why=why, fix="get an undamaged copy of this file"
        )

    def check_count(self, count: int, smallest: int, things: str) -> None:
        """Refuse a count of things that cannot fit into the rest of the file."""
        left = len(self.data) - self.position
        if count * smallest > left:
            raise self.error(
                f"the file is cut short, or lies about its {things}", f"{count} of them in {left} bytes"
            )

    def scalar(self, code: str) -> Any:
        """Read one little-endian number of the struct code."""
        size = struct.calcsize("<" + code)
        self.check_count(1, size, "numbers")
        value = struct.unpack_from("<" + code, self.data, self.position)[0]
        self.position += size
        return value

    def string(self, limit: int | None = None) -> str:
        """Read one string, of at most limit bytes."""
        length = self.scalar("Q")
        self.check_count(length, 1, "string bytes")
        if limit is not None and length > limit:
            raise self.error("a name is too long", f"{length} bytes; at most {limit} are read")
        raw = self.data[self.position : self.position + length]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error("a string is not UTF-8", str(error.reason)) from error
        self.position += length
        return text

    def value(self, type_id: int, key: str) -> Any:
        """Read one metadata value: a scalar, a string, or a flat array of these as a list."""
        if type_id == _STRING:
            return self.string()
        if type_id in _SCALARS:
            return self.scalar(_SCALARS[type_id])
        if type_id != _ARRAY:
            raise self.error("a metadata value of unknown type", f"{key!r} has type {type_id}")
        item_type, count = self.scalar("I"), self.scalar("Q")
        if item_type == _STRING:
            self.check_count(count, 8, f"strings in {key!r}")
            return [self.string() for _ in range(count)]
        if item_type not in _SCALARS:
            raise self.error("a metadata array of unknown type", f"{key!r} has items of type {item_type}")
        dtype = np.dtype("?" if item_type == 7 else "<" + _SCALARS[item_type])
        self.check_count(count, dtype.itemsize, f"numbers in {key!r}")
        values = np.frombuffer(self.data, dtype, count, self.position) if count else np.empty(0, dtype)
        self.position += count * dtype.itemsize
        return values.tolist()
