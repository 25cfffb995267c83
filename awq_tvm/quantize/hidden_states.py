"""What flows between the blocks: streams of hidden states, each a file that is written and read sample by sample.

Two streams are known: FULL is what the original model computes, QUANTIZED what comes out of the blocks that are
quantized already. In memory is only the sample at hand; of small streams the system's file cache keeps the rest.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from awq_tvm.errors import CheckpointError, ResourceError
from awq_tvm.quantize.device import placed

FULL = "full"
QUANTIZED = "quantized"

# A larger stream is kept in bfloat16: what is written to disk for every block matters more then.
_LARGEST_FLOAT32_BYTES = 1 << 30
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """A whole stream on disk.

    Attributes:
        path: the file: elements one after the other, little-endian, nothing else.
        shape: (S, L, H): samples, tokens of each, channels.
        dtype: "float32" or "bfloat16", of the file; what is read is always float32.
        sha256: of the file.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: str
    sha256: str

    def __getitem__(self, samples: slice) -> Tensor:
        """Read some samples, float32 [n, L, H].

        Raises:
            CheckpointError: the file is shorter than it was.
        """
        start, stop, _ = samples.indices(self.shape[0])
        dtype, sample = _DTYPES[self.dtype], math.prod(self.shape[1:])
        buffer = torch.empty((max(0, stop - start), *self.shape[1:]), dtype=dtype, device="cpu")
        with self.path.open("rb") as file:
            file.seek(start * sample * dtype.itemsize)
            if file.readinto(_bytes_of(buffer)) != buffer.nbytes:
                raise CheckpointError(
                    "Hidden states are damaged", where=str(self.path), why="the file has become shorter"
                )
        return placed(buffer).float()


class HiddenStatesWriter:
    """A stream that is being written, from its first sample to its last."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        """Begin a stream.

        Args:
            path: where the whole stream will be; until then it is at `<path>.partial`.
            shape: (S, L, H).

        Raises:
            ResourceError: it cannot be written.
        """
        self._path, self._shape = path, shape
        self._dtype = "float32" if math.prod(shape) * 4 <= _LARGEST_FLOAT32_BYTES else "bfloat16"
        self._hash = hashlib.sha256()
        self._partial = path.with_name(f"{path.name}.partial")
        try:
            self._file = self._partial.open("wb")
        except OSError as error:
            raise self._failed(error) from None

    def append(self, hidden: Tensor) -> None:
        """Write the next samples, float32 [n, L, H].

        Raises:
            ResourceError: they cannot be written.
        """
        content = _bytes_of(hidden.to(_DTYPES[self._dtype]).cpu().contiguous())
        try:
            self._hash.update(content)
            self._file.write(content)
        except OSError as error:
            self._file.close()
            raise self._failed(error) from None

    def finish(self) -> HiddenStates:
        """Sync and rename: the stream is there as a whole from now on.

        Raises:
            ResourceError: it cannot be written.
        """
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        except OSError as error:
            raise self._failed(error) from None
        return HiddenStates(self._path, self._shape, self._dtype, self._hash.hexdigest())

    def _failed(self, error: OSError) -> ResourceError:
        return ResourceError(
            "Hidden states cannot be written",
            where=str(self._partial),
            why=error.strerror or str(error),
            fix="make room and run again with --resume",
        )


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    memory: memoryview = tensor.view(torch.uint8).view(-1).numpy().data
    return memory
