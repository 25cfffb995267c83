"""A strict safetensors reader: the header is proved consistent with the file before a byte of data is used.

The format (huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON object that maps
each tensor to dtype, shape and [begin, end) within the data, then the data. Stricter than the reference
library in two points: duplicate keys are refused, and `Checkpoint.read` refuses NaN and Inf.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.checkpoint.json_file import parse_json_object
from awq_tvm.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the reference library's own limit

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Entry:
    dtype: np.dtype[Any]
    info: TensorInfo
    begin: int
    end: int


class SafetensorsFile:
    """One open, verified, memory-mapped safetensors file.

    Args:
        path: a regular file.

    Attributes:
        path: the file.
        tensors: name -> TensorInfo, in file order.

    Raises:
        CheckpointError: if the header and the file contradict the format or each other, naming the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = map_file(path)
        header_bytes = self._header_length()
        self._data_start = 8 + header_bytes
        raw = self._map[8 : self._data_start]
        if not raw.startswith(b"{"):
            raise self._error("the header does not begin with '{'", f"byte 8 is {raw[:1]!r}")
        header = parse_json_object(raw, f"{path}, header")
        self._check_metadata(header.pop("__metadata__", {}))
        entries = {name: self._entry(name, value) for name, value in header.items()}
        self._entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
        self._check_layout()
        self.tensors: Mapping[str, TensorInfo] = {name: entry.info for name, entry in self._entries.items()}

    def read(self, name: str) -> NDArray[Any]:
        """Return one tensor as a read-only view of the mapped file, dtype and shape as in `tensors`."""
        entry = self._entries[name]
        count = (entry.end - entry.begin) // entry.dtype.itemsize
        if count == 0:
            return np.empty(entry.info.shape, entry.dtype)
        flat = np.frombuffer(self._map, entry.dtype, count, self._data_start + entry.begin)
        return flat.reshape(entry.info.shape)

    def give_back(self) -> None:
        """Let go of the memory that what was read takes; views of it stay good, and are read again when used.

        Pages of a mapped file count as this process's memory until the system needs them.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _error(self, what: str, why: str, tensor: str | None = None) -> CheckpointError:
        where = str(self.path) if tensor is None else f"{self.path}, tensor {tensor!r}"
        return CheckpointError(what, where=where, why=why, fix="get an undamaged copy of this file")

    def _header_length(self) -> int:
        size = len(self._map)
        length = int.from_bytes(self._map[:8], "little")
        if length > size - 8:
            raise self._error(
                "the header is longer than the file", f"header {length} bytes, file {size} bytes"
            )
        if length > MAX_HEADER_BYTES:
            raise self._error(
                "the header is too long", f"{length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        if length < 2:
            raise self._error("the header is empty", f"its length is {length} bytes")
        return length

    def _check_metadata(self, metadata: object) -> None:
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._error("__metadata__ is not a map of strings", f"found {str(metadata)[:80]}")

    def _entry(self, name: str, value: object) -> _Entry:
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self._error(
                "a header entry is not {dtype, shape, data_offsets}", f"found {str(value)[:80]}", name
            )
        dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
        if dtype is None:
            raise self._error("unknown dtype", f"{value['dtype']!r:.80}; known: {', '.join(DTYPES)}", name)
        shape, offsets = value["shape"], value["data_offsets"]
        if not _is_sizes(shape) or len(shape) > 8:
            raise self._error("the shape is not a list of sizes >= 0", f"found {str(shape)[:80]}", name)
        if not _is_sizes(offsets) or len(offsets) != 2:
            raise self._error("data_offsets is not [begin, end]", f"found {str(offsets)[:80]}", name)
        begin, end = offsets
        data_bytes = len(self._map) - self._data_start
        if not begin <= end <= data_bytes:
            raise self._error(
                "the data lies outside the file (truncated?)",
                f"bytes {begin} to {end} of {data_bytes}",
                name,
            )
        nbytes = dtype.itemsize
        for size in shape:  # Python integers: a product past 2 ** 64 is seen, not wrapped
            nbytes *= size
        if nbytes != end - begin:
            raise self._error(
                "the shape and the offsets disagree",
                f"{value['dtype']} {shape} takes {nbytes} bytes, data_offsets {offsets} spans {end - begin}",
                name,
            )
        return _Entry(dtype, TensorInfo(dtype.name, tuple(shape), value["dtype"], nbytes), begin, end)

    def _check_layout(self) -> None:
        position, previous = 0, "the start"
        for name, entry in self._entries.items():
            if entry.begin < position:
                raise self._error(
                    "tensors overlap", f"begins at {entry.begin}, {previous} ends at {position}", name
                )
            if entry.begin > position:
                raise self._error(
                    "a hole before a tensor", f"begins at {entry.begin}, {previous} ends at {position}", name
                )
            position, previous = entry.end, name
        data_bytes = len(self._map) - self._data_start
        if position != data_bytes:
            raise self._error("trailing bytes", f"the tensors end at {position}, the data at {data_bytes}")


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def map_file(path: Path) -> mmap.mmap:
    """Map a regular file of at least 8 bytes for reading.

    Raises:
        CheckpointError: if it is missing, unreadable, not a regular file, or shorter.
    """
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # NONBLOCK: a FIFO must not hang us
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError("not a regular file", where=str(path))
            if status.st_size < 8:
                raise CheckpointError(
                    "a weight file is empty or cut short",
                    where=str(path),
                    why=f"{status.st_size} bytes; the start of the header alone takes 8",
                    fix="get an undamaged copy of this file",
                )
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(
            "cannot read a file", where=str(path), why=error.strerror or str(error)
        ) from error
