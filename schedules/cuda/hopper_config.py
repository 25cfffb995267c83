"""The sizes of Hopper's matmul, proved consistent when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.schedules.cuda.config import (
    MAX_SUMS,
    Dispatch,
    TiledConfig,
    default_config,
    require,
    tile_bytes,
)
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
    """

    tokens: int
    tiles: int
    warpgroups: int = 2
    stages: int = 5

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

    def shared_bytes(self, bits: int, group_size: int) -> int:
        """Shared memory of a block, for codes of so many bits in groups of so many k."""
        stage = 4 * self.tiles * self.warpgroups * tile_bytes(bits, group_size) + self.tokens * 128
        # x begins at a multiple of a pattern, and shared memory does not.
        return self.stages * stage + PATTERN_BYTES


@dataclass(frozen=True)
class HopperConfig(Dispatch[TiledConfig | WarpgroupConfig, WarpgroupConfig]):
    """Kernels on `mma` up to some M, and on `wgmma` above."""


def default_hopper_config(spec: MatmulSpec, sms: int | None, shared_memory_bytes: int | None) -> HopperConfig:
    """What suits a linear before anything was measured: up to 64 tokens what other GPUs take.

    Args:
        spec: the linear.
        sms: of the target; None where it is unknown.
        shared_memory_bytes: that a block may have.
    """
    others = default_config(spec, sms, shared_memory_bytes)
    # Two blocks of the smaller tile share an SM, so that one decodes while the other waits.
    stages = 5 if spec.bits <= 4 else 4
    return HopperConfig(
        few=others.few,
        middle=(*others.middle, WarpgroupConfig(128, 1, 2, stages)),
        many=WarpgroupConfig(128, 2, 2, stages + 1),
        sms=others.sms,
        split_blocks=others.split_blocks,
    )
