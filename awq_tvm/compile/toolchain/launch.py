"""One launch of a GPU kernel. No more than the standard library: machines without TVM read launches too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: its name in the device source.
        arguments: in its order; the name of a buffer, an integer of 64 bits, or a float32.
        grid: blocks along x, y and z.
        block: threads of a block.
        shared_bytes: dynamic shared memory of a block.
        overlaps: it may begin before those before it have ended, and waits for them itself.
        cluster: blocks along x that run together and read each other's shared memory.
    """

    kernel: str
    arguments: tuple[str | int | float, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    overlaps: bool = False
    cluster: int = 1

    @property
    def blocks(self) -> int:
        """Of the whole grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]
