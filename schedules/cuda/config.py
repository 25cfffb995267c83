"""The sizes a tensor-core matmul is built with, proved consistent when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from awq_tvm.errors import UnsupportedError

MAX_SUMS = 128
"""Float32 sums a thread may hold: half of its 255 registers."""

REGISTERS_OF_SM = 65536

ROWS = 16
"""Outputs of a tile."""

EIGHT = 8
"""Tokens of the right operand of one instruction."""

PADDING = 4
"""Floats between tokens of partial sums, so that the lanes of a store meet different banks."""

GROUP_BYTES = 48
"""Scales and zero points of a tile's outputs for one group: 16 float16 and 16 bytes."""

ASSUMED_SMS = 108
"""Streaming multiprocessors of a GPU that the target does not name: an A100's."""


SPLIT_BLOCKS = 8
"""Blocks of 64 k that a part of k has at least, before anything was measured."""


class Tile(Protocol):
    """What a block of a kernel for more than a few tokens computes."""

    @property
    def tokens(self) -> int:
        """Of the block."""

    @property
    def rows(self) -> int:
        """Outputs of the block."""

    @property
    def threads(self) -> int:
        """Of the block."""

    @property
    def k_warps(self) -> int:
        """How many threads have sums of the same outputs."""

    @property
    def split_blocks(self) -> int:
        """Blocks of 64 k that a part of k has at least."""

    def run_of(self, group_size: int) -> int:
        """Blocks of k whose products are scaled at once where groups are so long."""

    def block_bytes(self, bits: int, group_size: int) -> int:
        """That a block reads of weights and x for 64 k, with codes of so many bits in groups of so many k."""

    def shared_bytes(self, bits: int, group_size: int) -> int:
        """Shared memory of a block, for codes of so many bits in groups of so many k."""


@dataclass(frozen=True)
class FewConfig:
    """A kernel for a few tokens: the warps of a block share its outputs and divide k among them.

    Attributes:
        eights: tokens of a block, in eights.
        tiles: outputs of a block, in sixteens.
        warps: of a block.
        stages: blocks of k that a warp has in shared memory or on the way there.
    """

    eights: int
    tiles: int
    warps: int
    stages: int = 4

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        require(self.eights >= 1 and self.tiles >= 1, "eights and tiles must be at least 1")
        require(1 <= self.warps <= 32, f"{self.warps} warps do not make a block")
        require(4 * self.eights * self.tiles <= MAX_SUMS, "the sums do not fit a thread's registers")
        require(self.stages >= 2, "fewer than two stages hide nothing")

    @property
    def most_tokens(self) -> int:
        """The largest M."""
        return EIGHT * self.eights

    @property
    def rows(self) -> int:
        """Outputs of a block."""
        return ROWS * self.tiles

    @property
    def partial_sums(self) -> int:
        """Floats in which the warps' sums meet."""
        return self.warps * self.most_tokens * (self.rows + PADDING)

    def shared_bytes(self, bits: int, group_size: int) -> int:
        """Shared memory of a block, for codes of so many bits in groups of so many k."""
        stage = self.tiles * tile_bytes(bits, group_size) + self.eights * 1024
        return self.warps * self.stages * stage + 4 * self.partial_sums


@dataclass(frozen=True)
class TiledConfig:
    """A kernel for many tokens: x passes through shared memory in stages, each warp owns a part of the output tile.

    Attributes:
        eights: tokens of a warp, in eights.
        tiles: outputs of a warp, in sixteens.
        token_warps: warps of a block along the tokens.
        row_warps: warps of a block along the outputs.
        stages: steps along k that are in shared memory or on the way there.
        k_warps: warps that share a tile and take the blocks of k in turn, so many a step.
        split_blocks: blocks of 64 k that a part of k has at least, where thread blocks divide it.
    """

    eights: int
    tiles: int
    token_warps: int = 2
    row_warps: int = 4
    stages: int = 4
    k_warps: int = 1
    split_blocks: int = SPLIT_BLOCKS

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        require(self.eights >= 1 and self.tiles >= 1, "eights and tiles must be at least 1")
        require(self.sums <= MAX_SUMS, "the sums do not fit a thread's registers")
        require(self.threads <= 1024, f"{self.threads} threads do not make a block")
        require(self.k_warps >= 1, "k_warps must be at least 1")
        copies = self.tokens * 8 % (self.threads // self.k_warps)
        require(copies == 0, "the threads do not divide the copies of a stage")
        require(self.stages >= 2, "fewer than two stages hide nothing")
        require(self.split_blocks >= 1, "split_blocks must be at least 1")
        fit = eights_at_once(self, self.eights, self.shared_bytes(4, 64))
        require(fit >= 1, "not even the sums of eight tokens of each warp fit the stages")

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.token_warps * self.row_warps * self.k_warps

    @property
    def tokens(self) -> int:
        """Of a block."""
        return EIGHT * self.eights * self.token_warps

    @property
    def rows(self) -> int:
        """Outputs of a block."""
        return ROWS * self.tiles * self.row_warps

    @property
    def sums(self) -> int:
        """Of a thread."""
        return 4 * self.eights * self.tiles

    @property
    def blocks_by_registers(self) -> int:
        """How many blocks the registers of an SM are enough for."""
        return REGISTERS_OF_SM // (self.threads * registers_for(self.sums))

    def run_of(self, group_size: int) -> int:
        """Blocks of k whose products are added before they are scaled, where groups are so long.

        Two take half of the multiplications by scales, and hold the sums twice: only where registers have room, and
        a block has an SM for itself anyhow.
        """
        roomy = MAX_SUMS // 4 < self.sums <= MAX_SUMS // 2
        return 2 if roomy and self.k_warps == 1 and group_size % 128 == 0 else 1

    def block_bytes(self, bits: int, group_size: int) -> int:
        """That a block reads of weights and x for 64 k, with codes of so many bits in groups of so many k."""
        return self.row_warps * self.tiles * tile_bytes(bits, group_size) + self.tokens * 128

    def shared_bytes(self, bits: int, group_size: int) -> int:
        """Shared memory of a block, for codes of so many bits in groups of so many k."""
        return self.stages * self.k_warps * self.block_bytes(bits, group_size)


_Middle = TypeVar("_Middle", bound=Tile, covariant=True)
_Many = TypeVar("_Many", bound=Tile, covariant=True)


@dataclass(frozen=True)
class Dispatch(Generic[_Middle, _Many]):
    """The kernels of one linear, by M.

    Attributes:
        few: up to their ``most_tokens``, in rising order.
        middle: up to their tile's tokens, in rising order.
        many: above that.
        sms: streaming multiprocessors that blocks are wanted for.
        clusters: whether blocks can be launched in clusters, which read each other's shared memory.
    """

    few: tuple[FewConfig, ...]
    middle: tuple[_Middle, ...]
    many: _Many
    sms: int = ASSUMED_SMS
    clusters: bool = False

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        require(len(self.middle) >= 1, "no kernel for the middle")
        require(self.sms >= 1, "sms must be at least 1")

    def shared_bytes(self, bits: int, group_size: int) -> int:
        """The most shared memory of one block of any of them."""
        sizes = [few.shared_bytes(bits, group_size) for few in self.few]
        sizes += [tile.shared_bytes(bits, group_size) for tile in (*self.middle, self.many)]
        return max(sizes)


@dataclass(frozen=True)
class TensorCoreConfig(Dispatch[TiledConfig, TiledConfig]):
    """Kernels on `mma`."""


def eights_at_once(tile: Tile, eights: int, room: int) -> int:
    """How many of the eights of tokens of each warp pass through shared memory at once when their sums leave a tile.

    Args:
        tile: what a block computes: so many ``rows`` and ``tokens``, with sums of ``k_warps`` kinds.
        eights: of a warp.
        room: bytes of shared memory.

    Returns:
        The largest divisor of ``eights`` that has room, 0 where none has.
    """
    an_eight = 4 * tile.k_warps * (tile.tokens // eights) * (tile.rows + PADDING)
    return max((n for n in range(1, eights + 1) if eights % n == 0 and n * an_eight <= room), default=0)


def registers_for(sums: int) -> int:
    """Registers of a thread as nvcc needs them, about: each sum with its operand, and addresses and counters."""
    return 42 + 2 * sums


def tile_bytes(bits: int, group_size: int) -> int:
    """Shared memory of sixteen outputs and 64 k: codes, and scales and zero points of one group or two."""
    return (512 if bits <= 4 else 1024) + GROUP_BYTES * (1 if group_size % 64 == 0 else 2)


def require(holds: bool, why: str) -> None:
    """Refuse a configuration.

    Raises:
        UnsupportedError: it does not hold.
    """
    if not holds:
        raise UnsupportedError("This tensor-core configuration is not consistent", why=why)
