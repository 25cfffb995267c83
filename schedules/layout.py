"""How the codes, scales and zero points of a quantized linear lie in memory.

A layout names the weight arrays of a kernel, says their shapes, and packs a weight into them; kernels and
``pack`` are written against the same class, so they cannot drift apart. Packing runs at compile time only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from awq_tvm.schedules.spec import MatmulSpec

Array = np.ndarray


@dataclass(frozen=True)
class ArrayType:
    """Shape and dtype of one packed weight array; ``suffix`` ends its parameter name."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str


class Layout(ABC):
    """One way to store a quantized weight."""

    name: str

    @abstractmethod
    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """The weight arrays of a linear of this spec, in the order of the kernel's parameters."""

    @abstractmethod
    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """Pack one weight.

        Args:
            spec: the linear's spec.
            q: [N, K] uint8 codes.
            scales: [N, K // group_size] float16.
            zeros: [N, K // group_size] uint8.

        Returns:
            The arrays that ``arrays`` describes.
        """

    @abstractmethod
    def elements(self, spec: MatmulSpec, arrays: tuple[Any, ...], n: Any, k: Any) -> tuple[Any, Any, Any]:
        """Index expressions of one weight: (code, scale, zero point) of W[n, k], in the stored dtypes.

        Args:
            spec: the linear's spec.
            arrays: what ``arrays`` describes, as TE tensors, TIR buffers or numpy arrays.

        A layout may add the same number to a code and its zero point: only their difference counts.
            n: output index.
            k: input index.
        """


class RowLayout(Layout):
    """Rows as the checkpoint has them: what the model is exported in, before any target is known.

    Codes of up to 4 bits: qweight uint8 [N, K // 2], k even in the low nibble, k odd in the high one;
    wider codes: uint8 [N, K]. scales float16 [N, G], zeros uint8 [N, G].
    """

    name = "row"

    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """See ``Layout.arrays``."""
        n, k, g = spec.out_features, spec.in_features, spec.groups
        width = k // 2 if spec.bits <= 4 else k
        return (
            ArrayType("qweight", (n, width), "uint8"),
            ArrayType("scales", (n, g), "float16"),
            ArrayType("zeros", (n, g), "uint8"),
        )

    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """See ``Layout.pack``."""
        if spec.bits <= 4:
            q = q[:, 0::2] | (q[:, 1::2] << 4)
        return np.ascontiguousarray(q), np.ascontiguousarray(scales), np.ascontiguousarray(zeros)

    def elements(self, spec: MatmulSpec, arrays: tuple[Any, ...], n: Any, k: Any) -> tuple[Any, Any, Any]:
        """See ``Layout.elements``."""
        qweight, scales, zeros = arrays
        g = k // spec.group_size
        code = (qweight[n, k // 2] >> (k % 2 * 4).astype("uint8")) & 15 if spec.bits <= 4 else qweight[n, k]
        return code, scales[n, g], zeros[n, g]


class PairedBlocksLayout(Layout):
    """Two blocks of sixteen outputs in turn, four k in each 32-bit lane: the operand of a four-way dot product.

    A kernel for one row works on both blocks at once and so reads each array from its beginning to its end, which
    is what processors fetch ahead best.

    Codes of up to 4 bits: qweight uint8 [N32, K // 8, 2, 16, 4]; with n = 32 p + 16 h + j, byte (p, c, h, j, b) holds
    q[n, 8 c + b] in its low nibble and q[n, 8 c + 4 + b] in its high one. Wider codes: uint8 [N32, K // 4, 2, 16, 4],
    byte (p, c, h, j, b) = q[n, 4 c + b]. scales float16 [N32, G, 2, 16], zeros uint8 [N32, G, 2, 16].
    N32 = ceil(N / 32); the rows that pad N have scale 0.
    """

    name = "paired_blocks"

    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """See ``Layout.arrays``."""
        n32, g = -(-spec.out_features // 32), spec.groups
        step = 8 if spec.bits <= 4 else 4
        return (
            ArrayType("qweight", (n32, spec.in_features // step, 2, 16, 4), "uint8"),
            ArrayType("scales", (n32, g, 2, 16), "float16"),
            ArrayType("zeros", (n32, g, 2, 16), "uint8"),
        )

    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """See ``Layout.pack``."""
        n, k = q.shape
        padding = ((0, -n % 32), (0, 0))
        q, scales, zeros = (np.pad(array, padding) for array in (q, scales, zeros))
        n32 = q.shape[0] // 32
        codes = np.ascontiguousarray(q.reshape(n32, 2, 16, k // 4, 4).transpose(0, 3, 1, 2, 4))
        if spec.bits <= 4:
            codes = np.ascontiguousarray(codes[:, 0::2] | (codes[:, 1::2] << 4))
        by_group = (
            np.ascontiguousarray(a.reshape(n32, 2, 16, -1).transpose(0, 3, 1, 2)) for a in (scales, zeros)
        )
        return (codes, *by_group)

    def elements(self, spec: MatmulSpec, arrays: tuple[Any, ...], n: Any, k: Any) -> tuple[Any, Any, Any]:
        """See ``Layout.elements``."""
        qweight, scales, zeros = arrays
        p, h, j, g = n // 32, n % 32 // 16, n % 16, k // spec.group_size
        if spec.bits <= 4:
            code = (qweight[p, k // 8, h, j, k % 4] >> (k % 8 // 4 * 4).astype("uint8")) & 15
        else:
            code = qweight[p, k // 4, h, j, k % 4]
        return code, scales[p, g, h, j], zeros[p, g, h, j]


class SignedBlocksLayout(PairedBlocksLayout):
    """``PairedBlocksLayout`` whose codes wider than 4 bits are signed: 128 less, int8, and so are their zero points.

    These bytes are the operand of a dot product of signed bytes, and q - z stays what it was.
    """

    name = "signed_blocks"

    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """See ``Layout.arrays``."""
        arrays = super().arrays(spec)
        if spec.bits <= 4:
            return arrays
        return tuple(replace(array, dtype="int8") if array.dtype == "uint8" else array for array in arrays)

    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """See ``Layout.pack``."""
        if spec.bits > 4:
            q, zeros = ((array ^ 0x80).view(np.int8) for array in (q, zeros))
        return super().pack(spec, q, scales, zeros)


class BitPlanesLayout(PairedBlocksLayout):
    """``PairedBlocksLayout`` with codes of 2 and 3 bits in as many bits, where groups are multiples of 32.

    qweight uint8 [N32, K // 32, 2, bits, 16, 4]; with n = 32 p + 16 h + j and k = 32 c + 16 v + 4 i + b, bits 2 i and
    2 i + 1 of byte (p, c, h, v, j, b) are the low two of q[n, k], and bit 4 v + i of byte (p, c, h, 2, j, b) is its
    third. A shift and a mask of a vector of bytes are thus the operand of a four-way dot product, but for the third
    bit.
    """

    name = "bit_planes"

    @staticmethod
    def planes(spec: MatmulSpec) -> int:
        """Vectors of 64 bytes for 16 outputs and 32 k; 0 where codes are stored as in ``PairedBlocksLayout``."""
        return spec.bits if spec.bits < 4 and spec.group_size % 32 == 0 else 0

    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """See ``Layout.arrays``."""
        qweight, scales, zeros = super().arrays(spec)
        if planes := self.planes(spec):
            qweight = replace(qweight, shape=(qweight.shape[0], spec.in_features // 32, 2, planes, 16, 4))
        return qweight, scales, zeros

    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """See ``Layout.pack``."""
        packed, scales, zeros = super().pack(spec, q, scales, zeros)
        planes = self.planes(spec)
        if not planes:
            return packed, scales, zeros
        q = np.pad(q, ((0, -len(q) % 32), (0, 0)))
        # Axes: p, h, j, c, v, i, b to p, c, h, v, i, j, b.
        codes = q.reshape(-1, 2, 16, q.shape[1] // 32, 2, 4, 4).transpose(0, 3, 1, 4, 5, 2, 6)
        i = np.arange(4, dtype=np.uint8)[:, None, None]
        qweight = np.bitwise_or.reduce((codes & 3) << 2 * i, axis=4)
        if planes == 3:
            bit = i + 4 * np.arange(2, dtype=np.uint8)[:, None, None, None]
            third = np.bitwise_or.reduce(codes >> 2 << bit, axis=(3, 4))
            qweight = np.concatenate([qweight, third[:, :, :, None]], axis=3)
        return np.ascontiguousarray(qweight), scales, zeros

    def elements(self, spec: MatmulSpec, arrays: tuple[Any, ...], n: Any, k: Any) -> tuple[Any, Any, Any]:
        """See ``Layout.elements``."""
        if not (planes := self.planes(spec)):
            return super().elements(spec, arrays, n, k)
        qweight, scales, zeros = arrays
        p, h, j, g = n // 32, n % 32 // 16, n % 16, k // spec.group_size
        c, v, i, b = k // 32, k % 32 // 16, k % 16 // 4, k % 4
        code = (qweight[p, c, h, v, j, b] >> (2 * i).astype("uint8")) & 3
        if planes == 3:
            code = code + ((qweight[p, c, h, 2, j, b] >> (4 * v + i).astype("uint8")) & 1) * 4
        return code, scales[p, g, h, j], zeros[p, g, h, j]


class MmaFragmentsLayout(Layout):
    """What each lane of a warp holds of a 16 x 16 tile of W, as the left operand of `mma.m16n8k16` and of `wgmma`.

    Sixteen outputs and 64 k are a block: one 16-byte load of each of 32 lanes for codes of up to 4 bits, two for
    wider ones. Lane l holds the outputs l / 4 and l / 4 + 8, and of each 16 k the two from 2 (l % 4) on and the two
    eight further.

    With n = 16 p + 8 u + v, k = 64 b + 32 h + 16 j + 8 a + 2 c + e and lane l = 4 v + c, codes of up to 4 bits:
    qweight uint8 [N16, K // 64, 32, 16], the nibble u + 2 a + 4 e of the little-endian 32-bit word 2 h + j; wider
    codes: uint8 [N16, K // 64, 2, 32, 16], byte (p, b, h, l, 8 j + 4 a + 2 u + e). scales float16
    [N16, G, 8, 2], zeros uint8 [N16, G, 8, 2], element (p, g, v, u). N16 = ceil(N / 16); the rows that pad N have
    scale 0. K must be a multiple of 64.
    """

    name = "mma_fragments"

    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """See ``Layout.arrays``."""
        n16, blocks, g = -(-spec.out_features // 16), spec.in_features // 64, spec.groups
        halves = () if spec.bits <= 4 else (2,)
        return (
            ArrayType("qweight", (n16, blocks, *halves, 32, 16), "uint8"),
            ArrayType("scales", (n16, g, 8, 2), "float16"),
            ArrayType("zeros", (n16, g, 8, 2), "uint8"),
        )

    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """See ``Layout.pack``."""
        n, k = q.shape
        padding = ((0, -n % 16), (0, 0))
        q, scales, zeros = (np.pad(array, padding) for array in (q, scales, zeros))
        # Axes: p, u, v, b, h, j, a, c, e.
        codes = q.reshape(-1, 2, 8, k // 64, 2, 2, 2, 4, 2)
        if spec.bits <= 4:
            # To p, b, v, c, h, j, then the nibbles of a word: e, a, u, the last two in one byte.
            codes = codes.transpose(0, 3, 2, 7, 4, 5, 8, 6, 1)
            codes = (codes[..., 0] | (codes[..., 1] << 4)).reshape(-1, k // 64, 32, 16)
        else:
            codes = codes.transpose(0, 3, 4, 2, 7, 5, 6, 1, 8).reshape(-1, k // 64, 2, 32, 16)
        by_group = (
            np.ascontiguousarray(a.reshape(-1, 2, 8, spec.groups).transpose(0, 3, 2, 1))
            for a in (scales, zeros)
        )
        return (np.ascontiguousarray(codes), *by_group)

    def elements(self, spec: MatmulSpec, arrays: tuple[Any, ...], n: Any, k: Any) -> tuple[Any, Any, Any]:
        """See ``Layout.elements``."""
        qweight, scales, zeros = arrays
        p, u, v, g = n // 16, n % 16 // 8, n % 8, k // spec.group_size
        b, h, j, a, c, e = k // 64, k % 64 // 32, k % 32 // 16, k % 16 // 8, k % 8 // 2, k % 2
        lane = 4 * v + c
        if spec.bits <= 4:
            code = (qweight[p, b, lane, 8 * h + 4 * j + 2 * e + a] >> (u * 4).astype("uint8")) & 15
        else:
            code = qweight[p, b, h, lane, 8 * j + 4 * a + 2 * u + e]
        return code, scales[p, g, v, u], zeros[p, g, v, u]


class SimdgroupRowsLayout(Layout):
    """Rows of codes in the order in which a thread takes two at a time out of a 32-bit word, for Apple's GPUs.

    Codes of up to 4 bits: qweight uint8 [N4, K // 2], k = 8 c + 2 a + e in the nibble a + 4 e of the little-endian
    32-bit word c of its row; wider codes: uint8 [N4, K], k = 4 c + 2 a + e in the byte a + 2 e of word c. So one mask
    leaves two codes next to each other in the two halves of a word. scales float16 [N4 // 4, G, 4], zeros uint8
    [N4 // 4, G, 4]: those of four outputs side by side. N4 is N rounded up to a multiple of 4; the rows that pad N
    have scale 0. K must be a multiple of 8.
    """

    name = "simdgroup_rows"

    def arrays(self, spec: MatmulSpec) -> tuple[ArrayType, ...]:
        """See ``Layout.arrays``."""
        quads, k, g = -(-spec.out_features // 4), spec.in_features, spec.groups
        return (
            ArrayType("qweight", (4 * quads, k // 2 if spec.bits <= 4 else k), "uint8"),
            ArrayType("scales", (quads, g, 4), "float16"),
            ArrayType("zeros", (quads, g, 4), "uint8"),
        )

    def pack(self, spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> tuple[Array, ...]:
        """See ``Layout.pack``."""
        padding = ((0, -len(q) % 4), (0, 0))
        q, scales, zeros = (np.pad(array, padding) for array in (q, scales, zeros))
        rows, k = q.shape
        # Axes n, c, a, e become n, c, e, a: nibbles, or bytes, of a word in their order.
        codes = q.reshape(rows, -1, 4 if spec.bits <= 4 else 2, 2).swapaxes(2, 3).reshape(rows, k)
        if spec.bits <= 4:
            codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
        by_group = (
            np.ascontiguousarray(a.reshape(-1, 4, spec.groups).swapaxes(1, 2)) for a in (scales, zeros)
        )
        return (np.ascontiguousarray(codes), *by_group)

    def elements(self, spec: MatmulSpec, arrays: tuple[Any, ...], n: Any, k: Any) -> tuple[Any, Any, Any]:
        """See ``Layout.elements``."""
        qweight, scales, zeros = arrays
        a, e, g = k // 2 % (4 if spec.bits <= 4 else 2), k % 2, k // spec.group_size
        if spec.bits <= 4:
            code = (qweight[n, k // 8 * 4 + 2 * e + a // 2] >> (a % 2 * 4).astype("uint8")) & 15
        else:
            code = qweight[n, k // 4 * 4 + 2 * e + a]
        return code, scales[n // 4, g, n % 4], zeros[n // 4, g, n % 4]


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        RowLayout(),
        PairedBlocksLayout(),
        SignedBlocksLayout(),
        BitPlanesLayout(),
        MmaFragmentsLayout(),
        SimdgroupRowsLayout(),
    )
}


class DenseLayout:
    """An unquantized W with sixteen outputs side by side: [N16, K, 16], element (i, k, j) = W[16 i + j, k].

    N16 = ceil(N / 16); the rows that pad N are zero.
    """

    name = "dense16"

    def arrays(self, in_features: int, out_features: int, weight_dtype: str) -> tuple[ArrayType, ...]:
        """The one weight array."""
        return (ArrayType("weight", (-(-out_features // 16), in_features, 16), weight_dtype),)

    def pack(self, weight: Array) -> tuple[Array, ...]:
        """[N, K] of any dtype to the array that ``arrays`` describes."""
        n, k = weight.shape
        padded = np.pad(weight, ((0, -n % 16), (0, 0)))
        return (np.ascontiguousarray(padded.reshape(-1, 16, k).transpose(0, 2, 1)),)

    def element(self, weight: Any, n: Any, k: Any) -> Any:
        """Index expression of W[n, k], for an embedding that shares the weight."""
        return weight[n // 16, k, n % 16]


DENSE_LAYOUTS: dict[str, DenseLayout] = {layout.name: layout for layout in (DenseLayout(),)}
