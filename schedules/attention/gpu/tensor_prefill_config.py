"""How a prefill kernel on tensor cores divides its work over warps and registers."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.attention.gpu.config import vector_length
from awq_tvm.schedules.attention.gpu.lanes import WARP
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape

BLOCK_ROWS = 16
"""Rows of one side of ``mma.m16n8k16``."""

STAGES = 2
"""Tiles of keys and values in shared memory: one is multiplied while the next is copied."""

WARPS = 4

FEATURES = 16
"""That a product sums over: a head has a multiple of them."""

ROOMY_BYTES = 128 * 1024
"""An SM whose blocks may take as much shared memory has room for two of those with the larger tiles."""


@dataclass(frozen=True)
class TensorPrefillConfig:
    """Sizes of one prefill kernel on tensor cores.

    Args:
        warps: of a block.
        row_blocks: blocks of 16 rows of a warp, 1 or 2: each key and value read from shared memory is multiplied by
            as many.
        tile_keys: keys of a tile, whole pages.
        held_queries: whether a warp keeps its queries in registers, or reads them from shared memory for each tile.
    """

    warps: int
    row_blocks: int
    tile_keys: int
    held_queries: bool

    def __post_init__(self) -> None:
        """Prove the sizes usable."""
        if (
            self.row_blocks not in (1, 2)
            or self.warps < 1
            or self.tile_keys < 1
            or self.tile_keys % PAGE_SIZE
        ):
            raise UnsupportedError(
                "This prefill configuration is not consistent",
                why=f"row_blocks are {self.row_blocks}, legal are 1 and 2; a tile is {self.tile_keys} keys, "
                f"legal are multiples of {PAGE_SIZE}; warps are {self.warps}",
            )

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.warps

    @property
    def tile_rows(self) -> int:
        """Rows, that is pairs of a token and a query head, of a block."""
        return BLOCK_ROWS * self.row_blocks * self.warps

    def shared_rows(self) -> int:
        """Rows of features in shared memory: keys and values of each stage, and queries.

        Queries that are soon in registers lie where the second stage will be.
        """
        stage = 2 * self.tile_keys
        return max(STAGES * stage, self.queries_at() + self.tile_rows)

    def queries_at(self) -> int:
        """The row of shared memory that the queries begin at."""
        return 2 * self.tile_keys * (1 if self.held_queries else STAGES)


def shared_stride(shape: AttentionShape) -> int:
    """Vectors of 16 bytes from a row in shared memory to the next: odd, so that eight rows meet all banks."""
    return shape.head_dim // vector_length(shape) | 1


def default_prefill_config(shape: AttentionShape, shared_bytes: int) -> TensorPrefillConfig:
    """What suits a shape before anything was measured.

    Sums take row_blocks * head_dim / 2 registers of a lane, scores row_blocks * tile_keys / 2, and queries that are
    kept row_blocks * head_dim / 4.

    Args:
        shape: of the attention.
        shared_bytes: the most shared memory that one block may take.
    """
    if shape.head_dim <= 64:
        return TensorPrefillConfig(WARPS, 2, 64, True)
    if shape.head_dim <= 96:
        return TensorPrefillConfig(WARPS, 2, 32, True)
    if shape.head_dim <= 128 and shared_bytes >= ROOMY_BYTES:
        return TensorPrefillConfig(WARPS, 2, 32, False)
    return TensorPrefillConfig(WARPS, 1, 32, True)
