"""How a decode kernel divides its work over lanes, warps and blocks."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.attention.gpu.lanes import WARP
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.gpu.vectors import in_a_vector

BLOCKS_PER_SM = 2
"""Blocks that an SM (or GPU core) holds at once, and is given before contexts stop being divided further."""

MOST_WARPS = 8
MOST_TENSOR_WARPS = 4
"""Of a block on tensor cores: each has a page under way, so that eight on an SM ask for enough."""

MOST_HEADS = 4
"""Query heads of a warp: their sums and the queries themselves fill half of its registers."""

SHARED_BYTES = 20 * 1024
"""What the sums of a block's warps may take where they meet: two blocks then fit on any GPU."""

MIN_SPLIT_KEYS = 64
"""A run of fewer keys costs more to merge than it saves."""

_ASSUMED_SMS = {"cuda": 108, "metal": 8}


@dataclass(frozen=True)
class DecodeConfig:
    """Sizes of one decode kernel.

    Args:
        lanes: of a key: each reads 16 bytes of it at a time, a power of two.
        pieces: vectors of 16 bytes that a lane reads of a key.
        heads: query heads of a warp; a key-value head with more has them in several warps, which read the same keys.
        head_warps: such warps.
        key_warps: warps that take turns at the keys.
        unroll: keys that a lane reads before it reckons with them.
        blocks: into how many blocks contexts are divided, as long as there are fewer.
    """

    lanes: int
    pieces: int
    heads: int
    head_warps: int
    key_warps: int
    unroll: int
    blocks: int

    def __post_init__(self) -> None:
        """Prove the sizes usable."""
        powers = (self.lanes, self.key_warps, self.unroll)
        if any(n < 1 or n & (n - 1) for n in powers) or self.lanes > WARP:
            raise UnsupportedError(
                "This decode configuration is not consistent",
                why=f"lanes, key_warps and unroll {powers} must be powers of two, lanes at most {WARP}",
            )
        if min(self.pieces, self.heads, self.head_warps, self.blocks) < 1:
            raise UnsupportedError("This decode configuration is not consistent", why="a size is below 1")

    @property
    def slots(self) -> int:
        """Keys that a warp reads at once."""
        return WARP // self.lanes

    @property
    def chunk(self) -> int:
        """Keys of a warp's turn."""
        return self.slots * self.unroll

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.head_warps * self.key_warps


def vector_length(shape: AttentionShape) -> int:
    """Numbers in 16 bytes of a page."""
    return in_a_vector(shape.dtype)


def default_decode_config(shape: AttentionShape, kind: str, sms: int | None = None) -> DecodeConfig:
    """What suits a shape before anything was measured.

    Args:
        shape: of the attention.
        kind: "cuda" or "metal".
        sms: streaming multiprocessors or GPU cores; None where they are unknown.
    """
    vectors = -(-shape.head_dim // vector_length(shape))
    pieces = -(-vectors // WARP)
    lanes = 1 << (-(-vectors // pieces) - 1).bit_length()
    head_warps = -(-shape.group // max(1, MOST_HEADS // pieces))
    room = SHARED_BYTES // (4 * shape.group * (shape.head_dim + 2))
    key_warps = max(1, min(MOST_WARPS // head_warps, room))
    return DecodeConfig(
        lanes=lanes,
        pieces=pieces,
        heads=-(-shape.group // head_warps),
        head_warps=head_warps,
        key_warps=1 << (key_warps.bit_length() - 1),
        unroll=max(1, 4 // pieces),
        blocks=BLOCKS_PER_SM * (sms or _ASSUMED_SMS[kind]),
    )


EIGHT = 8
"""Query heads, or keys, of one side of an ``mma`` that is as long."""


@dataclass(frozen=True)
class TensorDecodeConfig:
    """Sizes of one decode kernel on tensor cores; a warp's turn is a page.

    Args:
        eights: eights of query heads of a warp, 1 or 2.
        head_warps: warps that have other query heads and read the same keys.
        key_warps: warps that take turns at the pages.
        blocks: into how many blocks contexts are divided, as long as there are fewer.
    """

    eights: int
    head_warps: int
    key_warps: int
    blocks: int

    def __post_init__(self) -> None:
        """Prove the sizes usable."""
        if self.eights not in (1, 2) or min(self.head_warps, self.key_warps, self.blocks) < 1:
            raise UnsupportedError(
                "This decode configuration is not consistent",
                why=f"eights are {self.eights}, legal are 1 and 2; or another size is below 1",
            )

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.head_warps * self.key_warps


def default_tensor_config(shape: AttentionShape, sms: int | None = None) -> TensorDecodeConfig:
    """What suits a shape before anything was measured; ``sms`` is None where they are unknown."""
    # Twice the sums of 256 features would not fit in registers.
    eights = 2 if shape.group > EIGHT and shape.head_dim <= 128 else 1
    head_warps = -(-shape.group // (EIGHT * eights))
    room = SHARED_BYTES // (4 * shape.group * (shape.head_dim + 2))
    key_warps = max(1, min(MOST_TENSOR_WARPS // head_warps, room))
    blocks = BLOCKS_PER_SM * (sms or _ASSUMED_SMS["cuda"])
    return TensorDecodeConfig(eights, head_warps, 1 << (key_warps.bit_length() - 1), blocks)
