"""How a prefill kernel on Apple's SIMD groups divides its work, its registers and threadgroup memory."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.attention.gpu.lanes import WARP
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.metal.config import FLOAT_BYTES, HALF_BYTES, SIDE

MOST_FEATURES = 256
"""Of a head: the sums of eight rows then take 64 registers of a lane."""


@dataclass(frozen=True)
class SimdgroupPrefillConfig:
    """Sizes of one prefill kernel on SIMD groups.

    Args:
        simdgroups: of a threadgroup.
        row_eights: eights of rows of a SIMD group: each key and value that is read from threadgroup memory is
            multiplied by as many.
        tile_keys: keys of a tile, whole pages.
        held_queries: whether a SIMD group keeps its queries in registers, or reads them for each tile.
    """

    simdgroups: int
    row_eights: int
    tile_keys: int
    held_queries: bool

    def __post_init__(self) -> None:
        """Prove the sizes usable."""
        if min(self.simdgroups, self.row_eights, self.tile_keys) < 1 or self.tile_keys % PAGE_SIZE:
            raise UnsupportedError(
                "This prefill configuration is not consistent",
                why=f"a tile is {self.tile_keys} keys, legal are multiples of {PAGE_SIZE}; simdgroups are "
                f"{self.simdgroups} and row_eights {self.row_eights}",
            )

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return WARP * self.simdgroups

    @property
    def own_rows(self) -> int:
        """Rows of a SIMD group."""
        return SIDE * self.row_eights

    @property
    def tile_rows(self) -> int:
        """Rows, that is pairs of a token and a query head, of a threadgroup."""
        return self.own_rows * self.simdgroups


@dataclass(frozen=True)
class ThreadgroupPlan:
    """Where things lie in threadgroup memory, in bytes from its beginning.

    At 0 are keys and then values of a tile; before them queries that are soon in registers, after them the sums of
    eight rows of each SIMD group. Then come queries that stay, the scores of each SIMD group, which its weights
    take the place of, and a matrix of each.

    Args:
        shape: of the attention, in float16.
        config: sizes.
    """

    shape: AttentionShape
    config: SimdgroupPrefillConfig

    @property
    def stride(self) -> int:
        """Vectors of 16 bytes from a key, value or query to the next: odd, so that eight meet all banks once."""
        return odd(self.shape.head_dim // SIDE)

    @property
    def queries_at(self) -> int:
        """Where the queries begin."""
        return 0 if self.config.held_queries else self._shared_bytes

    @property
    def scores_at(self) -> int:
        """Where the scores begin."""
        staying = 0 if self.config.held_queries else self._rows_bytes(self.config.tile_rows)
        return self._shared_bytes + staying

    @property
    def scores_stride(self) -> int:
        """Numbers from a row of scores, or weights, to the next: an odd number of eights."""
        return odd(self.config.tile_keys // SIDE) * SIDE

    @property
    def own_scores(self) -> int:
        """Bytes of a SIMD group's scores."""
        return FLOAT_BYTES * self.config.own_rows * self.scores_stride

    @property
    def matrices_at(self) -> int:
        """Where the matrices begin."""
        return self.scores_at + self.config.simdgroups * self.own_scores

    @property
    def sums_stride(self) -> int:
        """Numbers from a row of sums to the next: an odd number of eights."""
        return self.stride * SIDE

    @property
    def own_sums(self) -> int:
        """Bytes of eight rows of sums."""
        return FLOAT_BYTES * SIDE * self.sums_stride

    @property
    def total(self) -> int:
        """Bytes."""
        return self.matrices_at + self.config.simdgroups * FLOAT_BYTES * SIDE * SIDE

    @property
    def _shared_bytes(self) -> int:
        tile = self._rows_bytes(2 * self.config.tile_keys)
        queries = self._rows_bytes(self.config.tile_rows) if self.config.held_queries else 0
        return max(tile, queries, self.config.simdgroups * self.own_sums)

    def _rows_bytes(self, rows: int) -> int:
        return HALF_BYTES * SIDE * self.stride * rows


def odd(count: int) -> int:
    """So many, or one more."""
    return count | 1


def default_simdgroup_config(shape: AttentionShape) -> SimdgroupPrefillConfig:
    """What suits a shape before anything was measured.

    Sums take row_eights * head_dim / 4 registers of a lane, queries that are kept half as many.

    Args:
        shape: of the attention.
    """
    if shape.head_dim <= 64:
        return SimdgroupPrefillConfig(4, 2, 32, True)
    if shape.head_dim <= 128:
        return SimdgroupPrefillConfig(4, 1, 32, True)
    return SimdgroupPrefillConfig(2, 1, 16, False)
