"""What a tuner can choose for the portable GPU family, likely ones first by a roofline of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from math import ceil, inf
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from awq_tvm.schedules.gpu.config import THREADS_PER_TILE, GpuMatmulConfig
from awq_tvm.schedules.ranking import ranked
from awq_tvm.schedules.rule import Part

if TYPE_CHECKING:
    from awq_tvm.schedules.spec import MatmulSpec
    from awq_tvm.targets import Target

ROWS_PER_BLOCK = (1, 2, 4, 8, 16)
TOKENS_PER_BLOCK = (1, 2, 4, 8)
TILE = (64, 128, 192)
MANY = (64, 512)
"""M that stand for prompts."""
ASSUMED_GB_PER_S, ASSUMED_GFLOPS, ASSUMED_CORES = 100.0, 3_000.0, 10
"""Of a target that does not say: a small GPU in a laptop."""
REGISTERS_A_CORE, BESIDE_SUMS = 65536, 48
SHARED_READS = 4.0
"""Operations that a float read from shared memory takes the time of."""


def portable_parts(spec: MatmulSpec, target: Target, default: GpuMatmulConfig) -> tuple[Part, ...]:
    """The kernel of a warp an output, and the tiled one.

    Args:
        spec: the linear.
        target: the GPU; tiles that its shared memory or registers do not hold are left out.
        default: the family's configuration for it.
    """
    few = (
        {"rows_per_block": rows, "tokens_per_block": tokens}
        for rows, tokens in product(ROWS_PER_BLOCK, TOKENS_PER_BLOCK)
    )
    many = ({"tile_m": m, "tile_n": n} for m, n in product(TILE, TILE))
    up_to = default.few_tokens
    at = (1, 4, up_to)
    return (
        Part(
            1,
            up_to,
            ("rows_per_block", "tokens_per_block"),
            _ranked(default, target, few, lambda c: geometric_mean([_few(spec, target, c, m) for m in at])),
            at,
            (*at, up_to - 1),
            ("rows_per_block",),
        ),
        Part(
            up_to + 1,
            None,
            ("tile_m", "tile_n"),
            _ranked(
                default, target, many, lambda c: geometric_mean([_many(spec, target, c, m) for m in MANY])
            ),
            MANY,
            (up_to + 1, 130, *MANY),
        ),
    )


def _few(spec: MatmulSpec, target: Target, config: GpuMatmulConfig, rows: int) -> float:
    """Seconds: the weights are read once for each block of tokens, from memory the first time."""
    bandwidth, flops, cores = _measures(target)
    passes = ceil(rows / config.tokens_per_block) if rows > 1 else 1
    codes = spec.out_features * spec.in_features * spec.bits / 8
    computed = passes * (config.tokens_per_block if rows > 1 else 1)
    blocks = ceil(spec.out_features / config.rows_per_block)
    wasted = blocks * config.rows_per_block / spec.out_features
    rounds = ceil(blocks * passes / cores) * cores / (blocks * passes)
    # Codes are decoded once a pass; that is about as much work as multiplying them for two tokens.
    operations = 2.0 * spec.out_features * spec.in_features * (computed + 2 * passes)
    reading = codes * (1 + (passes - 1) / 3) / bandwidth
    return max(reading, operations / flops) * wasted * rounds


def _many(spec: MatmulSpec, target: Target, config: GpuMatmulConfig, rows: int) -> float:
    """Seconds: operations, and reads of shared memory by each thread's own square."""
    _, flops, cores = _measures(target)
    blocks = ceil(spec.out_features / config.tile_n) * ceil(rows / config.tile_m)
    rounds = ceil(blocks / cores) * cores
    own_m, own_n = config.tile_m / 16, config.tile_n / 16
    a_k = own_m * own_n + SHARED_READS * (own_m + own_n) / 4
    decoding = 6 * config.tile_n / THREADS_PER_TILE
    return rounds * 2.0 * spec.in_features * THREADS_PER_TILE * (a_k + decoding) / flops


def _measures(target: Target) -> tuple[float, float, int]:
    """Bytes and float32 operations a second, and cores."""
    return (
        1e9 * (target.read_bandwidth_gb_per_s or ASSUMED_GB_PER_S),
        1e9 * (target.fp32_gflops or ASSUMED_GFLOPS),
        target.num_sms or ASSUMED_CORES,
    )


def _ranked(
    default: GpuMatmulConfig,
    target: Target,
    changes: Iterable[dict[str, Any]],
    seconds: Callable[[GpuMatmulConfig], float],
) -> tuple[GpuMatmulConfig, ...]:
    return ranked(
        default,
        lambda change: replace(default, **change),
        changes,
        lambda config: seconds(config) if _holds(target, config) else inf,
    )


def _holds(target: Target, config: GpuMatmulConfig) -> bool:
    sums = config.tile_m * config.tile_n // THREADS_PER_TILE
    registers = target.registers_per_sm or REGISTERS_A_CORE
    fits_shared = config.shared_bytes <= (target.shared_memory_bytes or 0)
    return fits_shared and THREADS_PER_TILE * (sums + BESIDE_SUMS) <= registers
