"""How long a tensor-core kernel takes at best on a GPU: what orders candidates before any is measured.

A roofline with the three things that keep a kernel from it: SMs without a block, too few bytes under way to cover
the memory's latency, and blocks of a last round that leave most SMs idle. Work beside the matrix instructions is
counted in instructions of a warp: decoding codes, and adding up what warps and parts of k have left. Only ratios
between candidates of one kernel are meant; nothing here was fitted to a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from awq_tvm.schedules.cuda.config import (
    REGISTERS_OF_SM,
    Dispatch,
    FewConfig,
    Tile,
    TiledConfig,
    registers_for,
    tile_bytes,
)
from awq_tvm.schedules.cuda.division import Division, division_of, sums_bytes
from awq_tvm.schedules.cuda.fragments import BLOCK_K

if TYPE_CHECKING:
    from awq_tvm.schedules.spec import MatmulSpec
    from awq_tvm.targets import Target

LATENCY_S = 700e-9
"""Of a read from memory under load."""
LAUNCH_S = 3e-6
"""Of a second kernel."""
CLOCK_HZ = 1.5e9
WARP_INSTRUCTIONS_A_CYCLE = 4
"""Of an SM."""
DECODING = 40
"""Instructions of a warp for the codes of 16 outputs and 64 k, scales and zero points included."""
MOST_REGISTERS = 255
"""Of a thread."""
L2_FACTOR = 3
"""So many times faster than memory the second-level cache is read."""
ASSUMED_GB_PER_S, ASSUMED_GFLOPS, ASSUMED_SMS = 600.0, 125_000.0, 72
"""Of a target that stands for many GPUs: those of an A10."""
THREADS_A_SM, BLOCKS_A_SM = 1536, 16
"""The least of the architectures that have the instructions."""


@dataclass(frozen=True)
class Gpu:
    """What the model reads of a target.

    Args:
        bandwidth: bytes a second.
        multiply: float16 operations of the tensor cores a second.
        sms: streaming multiprocessors.
        shared_bytes: of an SM.
        registers: of an SM.
    """

    bandwidth: float
    multiply: float
    sms: int
    shared_bytes: int
    registers: int

    @staticmethod
    def of(target: Target) -> Gpu:
        """The target's, or an A10's where it says nothing."""
        return Gpu(
            1e9 * (target.read_bandwidth_gb_per_s or ASSUMED_GB_PER_S),
            1e9 * (target.fp16_gflops or ASSUMED_GFLOPS),
            target.num_sms or ASSUMED_SMS,
            target.shared_memory_bytes or 0,
            target.registers_per_sm or REGISTERS_OF_SM,
        )

    def resident(self, threads: int, shared_bytes: int, sums: int) -> int:
        """Blocks that an SM holds at once; 0 where not even one fits, or a thread would spill registers."""
        registers = registers_for(sums)
        if registers > MOST_REGISTERS:
            return 0
        return min(
            self.shared_bytes // shared_bytes,
            self.registers // (threads * registers),
            THREADS_A_SM // threads,
            BLOCKS_A_SM,
        )


@dataclass(frozen=True)
class Work:
    """What one kernel does.

    Args:
        blocks: of the grid.
        threads: of a block.
        shared_bytes: of a block.
        sums: registers of a thread for sums.
        under_way: bytes that a block has asked for ahead.
        memory_bytes: read from memory by all blocks together.
        cache_bytes: read from the second-level cache.
        operations: of the tensor cores.
        instructions: of warps beside them, all blocks together.
        beside_s: seconds before or after.
        division: of the tiles, where there are any.
    """

    blocks: int
    threads: int
    shared_bytes: int
    sums: int
    under_way: int
    memory_bytes: float
    cache_bytes: float
    operations: float
    instructions: float
    beside_s: float = 0.0
    division: Division | None = None

    def seconds(self, gpu: Gpu) -> float:
        """At best; infinite where a block does not fit."""
        resident = gpu.resident(self.threads, self.shared_bytes, self.sums)
        if not resident:
            return float("inf")
        at_once = gpu.sms * resident
        rounds = ceil(self.blocks / at_once)
        # The last round leaves places empty; with one round, SMs are as busy as their share of blocks.
        in_use = self.blocks / (rounds * at_once) if rounds > 1 else min(1.0, self.blocks / gpu.sms)
        if self.division and self.division.divides:
            in_use = self.division.tiles / (gpu.sms * self.division.rounds(gpu.sms))
        there = min(resident, ceil(self.blocks / gpu.sms))
        covered = min(1.0, there * self.under_way * gpu.sms / (gpu.bandwidth * LATENCY_S))
        reading = self.memory_bytes / (gpu.bandwidth * min(in_use, 1.0) * covered)
        caching = self.cache_bytes / (L2_FACTOR * gpu.bandwidth * in_use)
        multiplying = self.operations / (gpu.multiply * in_use)
        beside = self.instructions / (gpu.sms * in_use * WARP_INSTRUCTIONS_A_CYCLE * CLOCK_HZ)
        return max(reading, caching, multiplying + beside / 2) + self.beside_s


def few_work(spec: MatmulSpec, config: FewConfig) -> Work:
    """The kernel for a few tokens."""
    tile = tile_bytes(spec.bits, spec.group_size)
    blocks = ceil(spec.out_features / config.rows)
    steps = ceil(spec.in_features / BLOCK_K)
    tiles = blocks * config.tiles
    # Each block adds up what its warps have left, and fills its stages before it has anything to do.
    adding = blocks * config.warps * config.rows * config.most_tokens / 32 * 3
    # Without a last step that all warps share, some wait for the others.
    uneven = ceil(steps / config.warps) * config.warps / steps
    return Work(
        blocks=blocks,
        threads=32 * config.warps,
        shared_bytes=config.shared_bytes(spec.bits, spec.group_size),
        sums=4 * config.eights * config.tiles,
        under_way=config.warps * (config.stages - 1) * config.tiles * tile,
        memory_bytes=tiles * steps * tile * uneven,
        cache_bytes=blocks * steps * config.eights * 1024,
        operations=tiles * steps * config.eights * 2 * 16 * 8 * BLOCK_K,
        instructions=tiles * steps * (DECODING + 8 * config.eights) + adding,
        beside_s=LATENCY_S,
    )


def tiled_work(spec: MatmulSpec, config: TiledConfig, rows: int, division: Division) -> Work:
    """A kernel for more tokens.

    Args:
        spec: the linear.
        config: its tile.
        rows: M.
        division: of its tiles, see ``division_of``.
    """
    tile = tile_bytes(spec.bits, spec.group_size)
    across, along = ceil(spec.out_features / config.rows), ceil(rows / config.tokens)
    steps = ceil(spec.in_features / BLOCK_K)
    blocks = across * along
    tiles = config.tiles * config.row_warps
    decoded = blocks * tiles * config.token_warps * steps
    run, block_bytes = config.run_of(spec.group_size), config.block_bytes(spec.bits, spec.group_size)
    return Work(
        blocks=division.blocks,
        threads=config.threads,
        shared_bytes=config.shared_bytes(spec.bits, spec.group_size),
        sums=config.sums * (3 if run > 1 else 2) // 2,
        under_way=(config.stages - 1) * config.k_warps * block_bytes,
        memory_bytes=across * tiles * steps * tile,
        cache_bytes=blocks * steps * block_bytes + division.sums * sums_bytes(config),
        operations=blocks * tiles * steps * config.tokens * 2 * 16 * BLOCK_K,
        instructions=decoded * (DECODING + (4 + 4 / run) * config.eights),
        beside_s=LATENCY_S + (LAUNCH_S if division.adds_later else 0.0),
        division=division,
    )


def tiled_seconds(
    spec: MatmulSpec, config: Dispatch[Tile, Tile], tiled: TiledConfig, rows: int, gpu: Gpu
) -> float:
    """One of the tiles of ``config`` at M = rows."""
    return tiled_work(spec, tiled, rows, division_of(spec, config, tiled, rows)).seconds(gpu)
