"""The sizes of Hopper's matmul, proved consistent when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.schedules.cuda.config import (
    MAX_SUMS,
    SPLIT_BLOCKS,
    Dispatch,
    TiledConfig,
    require,
    tile_bytes,
)
from awq_tvm.schedules.cuda.defaults import MANY_TOKENS, default_config
from awq_tvm.schedules.cuda.division import WGMMA_PRODUCTS, best_tile
from awq_tvm.schedules.cuda.warpgroup import PATTERN_BYTES
from awq_tvm.schedules.spec import MatmulSpec

ROWS = 64
"""Outputs of one product."""


@dataclass(frozen=True)
class WarpgroupConfig:
    """A kernel for many tokens: all warpgroups of a block share its tokens, and each has outputs of its own.

    Attributes:
        tokens: of a block.
        tiles: outputs of a warpgroup, in 64.
        warpgroups: of a block.
        stages: blocks of k that are in shared memory or on the way there; two of them may still be in use.
        split_blocks: blocks of 64 k that a part of k has at least, where thread blocks divide it.
    """

    tokens: int
    tiles: int
    warpgroups: int = 2
    stages: int = 5
    split_blocks: int = SPLIT_BLOCKS

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        require(
            self.tokens % 16 == 0 and 16 <= self.tokens <= 256, f"no product has {self.tokens} columns here"
        )
        require(self.tiles >= 1, "tiles must be at least 1")
        require(1 <= self.warpgroups <= 8, f"{self.warpgroups} warpgroups do not make a block")
        require(self.sums <= MAX_SUMS, "the sums do not fit a thread's registers")
        require(self.tokens * 8 % self.threads == 0, "the threads do not divide the copies of a stage")
        require(self.stages >= 3, "fewer than three stages hide nothing")
        require(self.split_blocks >= 1, "split_blocks must be at least 1")

    @property
    def threads(self) -> int:
        """Of a block."""
        return 128 * self.warpgroups

    @property
    def rows(self) -> int:
        """Outputs of a block."""
        return ROWS * self.tiles * self.warpgroups

    @property
    def k_warps(self) -> int:
        """Warps with sums of the same outputs."""
        return 1

    @property
    def sums(self) -> int:
        """Of a thread."""
        return self.tiles * self.tokens // 2

    def run_of(self, group_size: int) -> int:
        """Scales are multiplied into weights, not sums."""
        return 1

    def block_bytes(self, bits: int, group_size: int) -> int:
        """That a block reads of weights and x for 64 k, with codes of so many bits in groups of so many k."""
        return 4 * self.tiles * self.warpgroups * tile_bytes(bits, group_size) + self.tokens * 128

    def shared_bytes(self, bits: int, group_size: int) -> int:
        """Shared memory of a block, for codes of so many bits in groups of so many k."""
        # x begins at a multiple of a pattern, and shared memory does not.
        return self.stages * self.block_bytes(bits, group_size) + PATTERN_BYTES


@dataclass(frozen=True)
class HopperConfig(Dispatch[TiledConfig | WarpgroupConfig, WarpgroupConfig]):
    """Kernels on `mma` up to some M, and on `wgmma` above."""


def default_hopper_config(
    spec: MatmulSpec, sms: int | None, shared_memory_bytes: int | None, clusters: bool = False
) -> HopperConfig:
    """What suits a linear before anything was measured: up to 64 tokens what other GPUs take.

    Args:
        spec: the linear.
        sms: of the target; None where it is unknown.
        shared_memory_bytes: that a block may have.
        clusters: whether blocks can be launched in clusters.
    """
    others = default_config(spec, sms, shared_memory_bytes, clusters)
    # Two blocks of the smaller tile share an SM, so that one decodes while the other waits. The larger reads x less
    # often: 4 bits a weight make outputs cheaper to bring than tokens.
    stages = 5 if spec.bits <= 4 else 4
    tiles = (WarpgroupConfig(128, 2, 2, stages + 1), WarpgroupConfig(128, 1, 2, stages))
    middle, many = (
        best_tile(spec, tiles, tokens, others.sms, WGMMA_PRODUCTS, clusters) for tokens in (128, MANY_TOKENS)
    )
    return HopperConfig(
        few=others.few,
        middle=(*others.middle, middle),
        many=many,
        sms=others.sms,
        clusters=clusters,
    )
