"""What an attention kernel computes, and the tiles it computes it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvm.target import Target, codegen

from awq_tvm.errors import UnsupportedError

PAGE_SIZE = 16
"""Tokens of a KV cache page: one vector of scores."""

SCALE_BYTES = 4
"""Of a token's scale in an int8 page, float32."""

LANES = 16
"""Numbers in the vectors that the kernels are written in; LLVM splits them where registers are narrower."""


Kernel = Literal["decode", "prefill_paged", "prefill_ragged"]
"""One new token a sequence against the cache, many against the cache, and many against each other."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of causal attention with grouped queries.

    A page of one layer's cache is [2, kv_heads, PAGE_SIZE, head_dim] to the runtime. For these kernels the
    second half (values) is in that order, and the first (keys) is transposed to
    [kv_heads, head_dim, PAGE_SIZE], so that the scores of a page's 16 keys are one vector. Only the kernels of
    this package read pages.

    With int8 pages, a page's half for one head is its 16 x head_dim codes in the same order and then 16 float32
    scales, one a token: key = code * scale. Pages then lie closer together than the runtime thinks, which
    has made room for them in ``dtype``; what is beyond is never touched, and so is never resident.

    Args:
        heads: query heads, a multiple of kv_heads.
        kv_heads: key and value heads.
        head_dim: features of one head, a multiple of 8.
        dtype: of q, k, v, output and cache, "float32", "float16" or on GPUs "bfloat16"; scores and sums are float32.
        sliding_window: newest tokens that a query sees, itself included, or None for all.
        int8_pages: whether cached keys and values are int8 with a scale a token and head, in place of ``dtype``.

    Raises:
        UnsupportedError: a size is outside what is listed here.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "float32"
    sliding_window: int | None = None
    int8_pages: bool = False

    def __post_init__(self) -> None:
        """Prove the sizes usable."""
        where = "attention"
        if self.kv_heads < 1 or self.heads < 1 or self.heads % self.kv_heads:
            raise UnsupportedError(
                f"{self.heads} query heads cannot share {self.kv_heads} key-value heads", where=where
            )
        if self.head_dim < 8 or self.head_dim % 8:
            raise UnsupportedError(f"head_dim {self.head_dim} is not a multiple of 8", where=where)
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise UnsupportedError(
                f"no attention in {self.dtype}", where=where, fix="use float32, float16 or bfloat16"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UnsupportedError(
                f"a sliding window of {self.sliding_window} tokens sees nothing", where=where
            )

    @property
    def group(self) -> int:
        """Query heads of one key-value head."""
        return self.heads // self.kv_heads

    @property
    def page_dtype(self) -> str:
        """What one number of a page is stored in."""
        return "int8" if self.int8_pages else self.dtype

    @property
    def block(self) -> int:
        """Numbers from one head's half of a page to the next, of ``page_dtype``; scales count as their bytes."""
        return PAGE_SIZE * self.head_dim + (PAGE_SIZE * SCALE_BYTES if self.int8_pages else 0)


@dataclass(frozen=True)
class Tiles:
    """How much of the problem stays in registers and in the first-level cache.

    Args:
        rows: queries (token times head of the group) of a register block.
        vectors: vectors of LANES numbers beside one another in a register block.
        row_blocks: register blocks of rows in a tile of prefill.
        key_blocks: register blocks of keys in a tile.
    """

    rows: int
    vectors: int
    row_blocks: int
    key_blocks: int

    @property
    def tile_rows(self) -> int:
        """Queries of a tile."""
        return self.rows * self.row_blocks

    @property
    def block_keys(self) -> int:
        """Keys of a register block."""
        return self.vectors * LANES

    @property
    def tile_keys(self) -> int:
        """Keys of a tile."""
        return self.block_keys * self.key_blocks


@dataclass(frozen=True)
class AttentionConfig:
    """What can be chosen of one attention kernel.

    Args:
        tiles: in registers and in the first-level cache.
        split_keys: of a decode; a run of fewer keys is not split further.
    """

    tiles: Tiles
    split_keys: int = 64


def accumulators(target: Target) -> int:
    """Vectors of LANES float32 that fit in registers beside the operands: 16 with AVX-512, 6 elsewhere."""
    wide = str(target.kind.name) == "llvm" and bool(codegen.target_has_features("avx512f", target))
    return 16 if wide else 6


def prefill_tiles(target: Target) -> Tiles:
    """Tiles for many queries."""
    if accumulators(target) >= 16:
        return Tiles(rows=8, vectors=2, row_blocks=3, key_blocks=2)
    return Tiles(rows=6, vectors=1, row_blocks=4, key_blocks=4)


def decode_tiles(shape: AttentionShape, target: Target) -> Tiles:
    """Tiles for one token: the query heads of one key-value head."""
    budget = accumulators(target)
    most_rows = min(8, budget)
    row_blocks = -(-shape.group // most_rows)
    rows = -(-shape.group // row_blocks)
    vectors = max(width for width in (1, 2, 4) if width * rows <= budget or width == 1)
    return Tiles(rows=rows, vectors=vectors, row_blocks=row_blocks, key_blocks=4 // vectors)


def default_config(kernel: Kernel, shape: AttentionShape, target: Target) -> AttentionConfig:
    """What a kernel is built with when nothing was tuned."""
    return AttentionConfig(decode_tiles(shape, target) if kernel == "decode" else prefill_tiles(target))
