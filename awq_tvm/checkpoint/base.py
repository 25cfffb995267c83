"""What every reader hands out: a `Checkpoint` of dense tensors and quantized linears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq_tvm.checkpoint.finite import first_nonfinite
from awq_tvm.checkpoint.group_order import columns_by_group, order_problem
from awq_tvm.checkpoint.module_targets import matching_target
from awq_tvm.errors import AwqTvmError, CheckpointError, UsageError

BIT_WIDTHS = (2, 3, 4, 5, 6, 7, 8)
PER_CHANNEL = -1
"""The group size of weights with one scale and zero point for a whole row."""


@dataclass(frozen=True)
class TensorInfo:
    """What `Checkpoint.read` will return, known without reading it.

    Attributes:
        dtype: numpy name of the dtype that `read` returns ("float32", "bfloat16", ...).
        shape: the shape that `read` returns.
        stored_as: the name the file itself gives the type ("BF16", "Q4_1", ...).
        stored_bytes: bytes that the tensor takes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    stored_as: str
    stored_bytes: int


@dataclass(frozen=True)
class QuantizationScheme:
    """How the linears of a checkpoint are quantized, or one of them.

    Attributes:
        bits: width of a quantized value, 2 to 8.
        group_size: input channels that share one scale and zero point, or PER_CHANNEL.
        zero_point: True for asymmetric groups; False means every zero point is 2 ** (bits - 1).
        modules_to_not_convert: names of linears kept dense.
        exceptions: modules that are quantized otherwise, by a target as in `module_targets`.
        act_order: True if the channels of a group need not be neighbours, see `QuantizedWeight.group_of`.

    Raises:
        UsageError: if bits or group_size is out of range.
    """

    bits: int
    group_size: int
    zero_point: bool = True
    modules_to_not_convert: tuple[str, ...] = ()
    exceptions: Mapping[str, QuantizationScheme] = field(default_factory=dict)
    act_order: bool = False

    def __post_init__(self) -> None:
        size = 1 if self.group_size == PER_CHANNEL else self.group_size
        if problem := scheme_problem(self.bits, size):
            raise UsageError("the quantization scheme is not possible", why=problem)

    def of(self, name: str) -> QuantizationScheme:
        """Return the scheme of one module, by full name."""
        target = matching_target(name, self.exceptions)
        return self if target is None else self.exceptions[target]

    def width(self, in_features: int) -> int:
        """Return how many inputs of a row share a scale."""
        return in_features if self.group_size == PER_CHANNEL else self.group_size


def scheme_problem(bits: object, group_size: object) -> str | None:
    """Say what is wrong with a pair of bits and group size, or None if it is fine."""
    if type(bits) is not int or bits not in BIT_WIDTHS:
        return f"bits is {bits!r}; it must be one of {', '.join(map(str, BIT_WIDTHS))}"
    if type(group_size) is not int or group_size < 1:
        return f"group_size is {group_size!r}; it must divide every in_features, e.g. 32, 64, 128"
    return None


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One quantized linear: W[n, k] = (q[n, k] - zeros[n, g]) * scales[n, g] with g = k // group_size.

    Where it was quantized in activation order, g is group_of[k] instead.

    Attributes:
        q: uint8 [N, K], each below 2 ** bits.
        scales: float16 [N, G], finite and > 0, with G = K // group_size.
        zeros: uint8 [N, G], each below 2 ** bits.
        bits: width of a value, 2 to 8.
        group_size: input channels in a group; divides K.
        group_of: int32 [K], the group of each channel, group_size of them in each; None where groups are of
            neighbours, in order.

    Raises:
        CheckpointError: if a shape, a dtype or a range is not as said above.
    """

    q: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    bits: int
    group_size: int
    group_of: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise CheckpointError("a quantized weight is not consistent", why=problem)

    def _problem(self) -> str | None:
        if problem := scheme_problem(self.bits, self.group_size):
            return problem
        for name, array, dtype in (
            ("q", self.q, np.uint8),
            ("scales", self.scales, np.float16),
            ("zeros", self.zeros, np.uint8),
        ):
            if array.dtype != dtype or array.ndim != 2:
                return f"{name} is {array.dtype} {list(array.shape)}; needed: {np.dtype(dtype)} [., .]"
        if self.in_features % self.group_size:
            return f"group_size {self.group_size} does not divide in_features {self.in_features}"
        groups = (self.out_features, self.in_features // self.group_size)
        if self.scales.shape != groups or self.zeros.shape != groups:
            return f"scales {self.scales.shape} and zeros {self.zeros.shape} must both be {groups}"
        if self.group_of is not None and (
            problem := order_problem(self.group_of, self.in_features, self.group_size)
        ):
            return problem
        for name, array in (("q", self.q), ("zeros", self.zeros)):
            if self.bits < 8 and array.size and int(array.max()) >> self.bits:
                return f"{name} holds {int(array.max())}, which does not fit {self.bits} bits"
        bad = np.flatnonzero(~(np.isfinite(self.scales) & (self.scales > 0)))
        if bad.size:
            where = tuple(int(i) for i in np.unravel_index(bad[0], self.scales.shape))
            return f"scales{list(where)} is {self.scales[where]}; needed: finite and > 0 ({bad.size} are not)"
        return None

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.q.shape[0])

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.q.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """Return W as float32 [N, K]."""
        if self.group_of is not None:
            values = self.q.astype(np.float32)
            values -= self.zeros.astype(np.float32)[:, self.group_of]
            values *= self.scales.astype(np.float32)[:, self.group_of]
            return values
        groups = self.q.reshape(*self.scales.shape, self.group_size).astype(np.float32)
        groups -= self.zeros.astype(np.float32)[:, :, None]
        groups *= self.scales.astype(np.float32)[:, :, None]
        return groups.reshape(self.q.shape)

    def side_by_side(self) -> tuple[QuantizedWeight, NDArray[np.int32] | None]:
        """Return the weight with the channels of each group next to each other, and where they came from.

        Returns:
            A weight with group_of None, and int32 [K]: its column i is column order[i] of this weight; None
            where nothing moved.
        """
        if self.group_of is None:
            return self, None
        order = columns_by_group(self.group_of)
        q = np.ascontiguousarray(self.q[:, order])
        return QuantizedWeight(q, self.scales, self.zeros, self.bits, self.group_size), order


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, whatever its format, in Hugging Face terms.

    Attributes:
        source: what the user typed.
        path: the folder or file that was opened.
        format: "huggingface", "awq", "awq-gemv", "awq-gemv-fast", "llm-awq", "gptq", "compressed-tensors" or
            "gguf".
        config: config.json in Hugging Face terms, checked and normalised (see `config.normalise_config`).
        scheme: how `quantized` is quantized; None for a dense checkpoint.
        tensors: name -> TensorInfo, dense tensors only.
        quantized: names of quantized linears, e.g. "model.layers.0.mlp.up_proj".
        load_dense: reads one dense tensor; called by `read`.
        load_quantized: reads one quantized linear; called by `read_quantized`.
        load_side_files: reads the small files that travel along; called once by `side_files`.
    """

    source: str
    path: Path
    format: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    load_dense: Callable[[str], NDArray[Any]] = field(repr=False)
    load_side_files: Callable[[], dict[str, bytes]] = field(repr=False)
    scheme: QuantizationScheme | None = None
    quantized: Sequence[str] = ()
    load_quantized: Callable[[str], QuantizedWeight] | None = field(default=None, repr=False)

    def read(self, name: str) -> NDArray[Any]:
        """Return one dense tensor as `tensors[name]` promises; it may be a read-only view of the file.

        Raises:
            CheckpointError: if there is no such tensor, or it holds NaN or Inf.
        """
        if name not in self.tensors:
            raise CheckpointError(f"there is no dense tensor {name!r}", where=str(self.path))
        values = self.load_dense(name)
        index = first_nonfinite(values)
        if index is not None:
            raise CheckpointError(
                "a weight is not a finite number",
                where=f"{self.path}, tensor {name}",
                why=f"{name}{list(index)} is {values[index]}",
                fix="get an undamaged copy of the checkpoint",
            )
        return values

    def read_quantized(self, name: str) -> QuantizedWeight:
        """Return one quantized linear, unpacked.

        Raises:
            CheckpointError: if there is no such linear, or its scales or zero points make no sense.
            UnsupportedError: if it holds what this version does not handle.
        """
        if self.load_quantized is None or name not in self.quantized:
            raise CheckpointError(f"there is no quantized linear {name!r}", where=str(self.path))
        try:
            return self.load_quantized(name)
        except AwqTvmError as error:
            raise _placed(error, f"{self.path}, linear {name}") from None

    @cached_property
    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer, chat template and generation config: file name -> content."""
        return MappingProxyType(self.load_side_files())


def _placed(error: AwqTvmError, where: str) -> AwqTvmError:
    """Return the error with its place filled in, if it does not know it yet."""
    return type(error)(error.what, where=error.where or where, why=error.why, fix=error.fix)
