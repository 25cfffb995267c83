"""The sizes a GPU matmul is built with, proved consistent when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.errors import UnsupportedError

WARP_SIZE = 32
"""Threads that shuffle with each other: an NVIDIA warp, an Apple SIMD group."""

THREADS_PER_TILE = 256
"""Threads of a tiled kernel's block, standing 16 x 16 over its output tile."""


@dataclass(frozen=True)
class GpuMatmulConfig:
    """Sizes of the three kernels of one quantized linear.

    Attributes:
        rows_per_block: outputs of one block of a few-tokens kernel, one a warp.
        tokens_per_block: tokens that share one read of the weights when there are a few.
        few_tokens: M up to which the few-tokens kernels run; above it the tiled one does.
        tile_m: tokens of one block of the tiled kernel.
        tile_n: outputs of one block of the tiled kernel.
        tile_k: k that pass through shared memory at a time.

    Raises:
        UnsupportedError: the sizes do not fit each other.
    """

    rows_per_block: int = 4
    tokens_per_block: int = 4
    few_tokens: int = 16
    tile_m: int = 64
    tile_n: int = 64
    tile_k: int = 32

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        if not 1 <= self.rows_per_block * WARP_SIZE <= 1024:
            raise self._wrong(f"{self.rows_per_block} warps do not fit a block of 1024 threads")
        if self.tokens_per_block < 1 or self.few_tokens < 1:
            raise self._wrong("tokens_per_block and few_tokens must be at least 1")
        for name, size in (("tile_m", self.tile_m), ("tile_n", self.tile_n)):
            # 16 threads stand along each side of the tile, and each owns a multiple of a float4.
            if size <= 0 or size % 64:
                raise self._wrong(f"{name} is {size}, not a multiple of 64")
        if self.tile_k != 32:
            raise self._wrong(
                f"tile_k is {self.tile_k}; four threads read one row, eight k each, so it is 32"
            )

    @property
    def shared_bytes(self) -> int:
        """Shared memory of one block of the tiled kernel."""
        return 4 * self.tile_k * (self.tile_m + self.tile_n)

    @staticmethod
    def _wrong(why: str) -> UnsupportedError:
        return UnsupportedError("This GPU matmul configuration is not consistent", why=why)
