"""The weights file: plain safetensors, streamed, every tensor on a 64-byte boundary of the file.

The format allows no holes between tensors, so a tensor whose size is not a multiple of 64 bytes is followed
by a small uint8 tensor named `padding.N`. The header is padded with spaces, as the format allows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from awq_tvm.errors import BundleError, UsageError

ALIGNMENT = 64
PADDING_PREFIX = "padding."
DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
# Two offsets, eight dimensions, dtype and punctuation of one tensor never need more than this many bytes.
_ENTRY_BYTES = 320


def write_weights(path: Path, parameters: Sequence[str], weights: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write the tensors in the order they come; only one is held at a time.

    Room for the header is set aside first and filled in last: shapes are known only as tensors arrive.

    Args:
        path: the file to make.
        parameters: the names that must come, each once, in any order.
        weights: (name, array) pairs; at most 8 dimensions, little-endian.

    Raises:
        UsageError: a tensor missing, twice, unknown, of an unknown dtype, or with too many dimensions.
        OSError: the disk is full or the file cannot be written.
    """
    wanted = set(parameters)
    room = _aligned(8 + 64 + sum(2 * (len(json.dumps(name)) + _ENTRY_BYTES) for name in wanted)) - 8
    header: dict[str, object] = {"__metadata__": {"format": "awq_tvm"}}
    offset = 0
    with path.open("wb") as file:
        file.seek(8 + room)
        for name, array in weights:
            if name not in wanted or name in header or name.startswith(PADDING_PREFIX):
                raise _refuse(name, "it is unknown, or came twice")
            if array.dtype.name not in DTYPES or array.ndim > 8:
                raise _refuse(name, f"dtype {array.dtype.name}, {array.ndim} dimensions cannot be stored")
            # reshape(-1) first: a zero-dimensional array has no byte view.
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            file.write(data.data)
            header[name] = _entry(DTYPES[array.dtype.name], array.shape, offset, offset + data.nbytes)
            offset += data.nbytes
            gap = -offset % ALIGNMENT
            if gap:
                file.write(bytes(gap))
                header[f"{PADDING_PREFIX}{len(header)}"] = _entry("U8", (gap,), offset, offset + gap)
                offset += gap
        missing = wanted - header.keys()
        if missing:
            raise _refuse(min(missing), f"{len(missing)} tensor(s) never came")
        text = json.dumps(header, separators=(",", ":")).encode()
        file.seek(0)
        file.write(struct.pack("<Q", room) + text.ljust(room))


def map_weights(path: Path, parameters: Sequence[str]) -> list[np.ndarray]:
    """Map tensors of a weights file into memory, without reading them.

    Args:
        path: what ``write_weights`` made, verified by the caller.
        parameters: names, in the order wanted.

    Returns:
        Arrays over one private mapping: pages come in as they are touched, and a write never reaches the file.

    Raises:
        BundleError: the header is not one of ours, or a tensor is missing or reaches past the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        room = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if room > size - 8:
            raise _damaged(path, f"the header of {room} bytes does not fit the file of {size}")
        try:
            header = json.loads(file.read(room))
        except ValueError as error:
            raise _damaged(path, str(error)) from None
    whole = np.memmap(path, np.uint8, mode="c")
    by_code = {code: name for name, code in DTYPES.items()}
    arrays = []
    for name in parameters:
        try:
            entry = header[name]
            dtype, shape = np.dtype(by_code[entry["dtype"]]), tuple(entry["shape"])
            start, end = (8 + room + int(offset) for offset in entry["data_offsets"])
            if start % ALIGNMENT:
                raise ValueError(f"byte {start} is not on a boundary of {ALIGNMENT}")
            arrays.append(whole[start:end].view(dtype).reshape(shape))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"tensor {name}: {error!r}") from None
    return arrays


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(
        "the weights file cannot be mapped",
        where=str(path),
        why=why,
        fix="copy the bundle again, or build it again with `python -m awq_tvm compile`",
    )


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _refuse(name: str, why: str) -> UsageError:
    return UsageError(
        "The weights are not the ones the manifest names.",
        where=f"tensor {name}",
        why=why,
        fix="hand over each tensor of `parameters` once",
    )
