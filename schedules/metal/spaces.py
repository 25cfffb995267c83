"""What a tuner can choose for the SIMD-group family: what a threadgroup holds, likely ones first by a roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from math import ceil, inf
from statistics import geometric_mean
from typing import TYPE_CHECKING

from awq_tvm.schedules.metal.config import LANES, SIDE, FewConfig, SimdgroupConfig, TileConfig
from awq_tvm.schedules.ranking import ranked, with_place
from awq_tvm.schedules.rule import Part

if TYPE_CHECKING:
    from awq_tvm.schedules.spec import MatmulSpec
    from awq_tvm.targets import Target

ROWS, SIMDGROUPS = (4, 2, 1), (2, 1, 4, 8)
TILE_ROWS, TOKEN_GROUPS, ROW_GROUPS, DEPTH = (32, 64, 128), (1, 2, 4), (1, 2, 4), (32, 64)
MANY = (64, 512)
"""M that stand for prompts."""
ASSUMED_GFLOPS, ASSUMED_CORES = 3_600.0, 10
"""Of a target that does not say."""
BUSY = 16
"""SIMD groups that hide the latencies of a core."""
DECODE, SUM, LOAD = 2.1, 1.25, 2.0
"""Instructions that decoding a code takes, adding it up for one token, and what a load takes the time of."""


def simdgroup_parts(spec: MatmulSpec, target: Target, default: SimdgroupConfig) -> tuple[Part, ...]:
    """A part for each kernel: its tokens stay, how a threadgroup works is chosen.

    Args:
        spec: the linear.
        target: the GPU; what its threadgroup memory does not hold is left out.
        default: the family's configuration for it.
    """
    parts, first = [], 1
    for place, few in enumerate(default.few):
        parts.append(_few_part(spec, target, default, place, first))
        first = few.tokens + 1
    for place, tile in enumerate(default.tiles):
        parts.append(_tile_part(spec, target, default, place, first))
        first = tile.tokens + 1
    return tuple(parts)


def _few_part(spec: MatmulSpec, target: Target, default: SimdgroupConfig, place: int, first: int) -> Part:
    last = default.few[place].tokens

    def changed(sizes: tuple[int, ...]) -> SimdgroupConfig:
        return replace(default, few=with_place(default.few, place, FewConfig(last, *sizes)))

    def seconds(config: SimdgroupConfig) -> float:
        return _few_seconds(spec, target, config.few[place])

    configs = _ranked(default, target, changed, product(ROWS, SIMDGROUPS), seconds)
    ends = tuple(dict.fromkeys((first, last)))
    return Part(first, last, (f"few.{place}",), configs, ends, ends, ("simdgroups",))


def _tile_part(spec: MatmulSpec, target: Target, default: SimdgroupConfig, place: int, first: int) -> Part:
    tokens = default.tiles[place].tokens
    last = None if place == len(default.tiles) - 1 else tokens
    timed = MANY if last is None else (last,)

    def changed(sizes: tuple[int, ...]) -> SimdgroupConfig:
        return replace(default, tiles=with_place(default.tiles, place, TileConfig(tokens, *sizes)))

    def seconds(config: SimdgroupConfig) -> float:
        return geometric_mean([_tile_seconds(spec, target, config.tiles[place], rows) for rows in timed])

    every = product(TILE_ROWS, TOKEN_GROUPS, ROW_GROUPS, DEPTH)
    configs = _ranked(default, target, changed, every, seconds)
    return Part(first, last, (f"tiles.{place}",), configs, timed, (first, *timed), ("depth",))


def _few_seconds(spec: MatmulSpec, target: Target, config: FewConfig) -> float:
    """Reading the weights, or the instructions of a code; longer where cores have too few SIMD groups."""
    cores, rate = _measures(target)
    codes = float(spec.out_features * spec.in_features)
    reading = codes * spec.bits / 8 / (1e9 * (target.read_bandwidth_gb_per_s or 100.0))
    # Two loads of x bring eight k of a token for all outputs of the SIMD group.
    operations = DECODE + config.tokens * (SUM + LOAD / 4 / config.rows)
    groups = ceil(spec.out_features / config.block_rows) * config.simdgroups
    idle = max(1.0, BUSY * cores / groups)
    wasted = groups * config.rows / spec.out_features
    return max(reading, codes * operations / rate) * idle * wasted


def _tile_seconds(spec: MatmulSpec, target: Target, config: TileConfig, tokens: int) -> float:
    """Products, loads of matrices and decoding, by as many rounds as the cores take for the tiles."""
    cores, rate = _measures(target)
    blocks = ceil(spec.out_features / config.rows) * ceil(tokens / config.tokens)
    down, across = config.own_tokens // SIDE, config.own_rows // SIDE
    # Of a lane, for eight k: a product of 8 x 8 x 8 is sixteen multiply-adds.
    multiplying = 16 * down * across + LOAD * (down + 2 * across)
    bringing = ((DECODE + 1) * config.rows + LOAD * config.tokens / SIDE) * SIDE / config.threads
    of_a_block = config.threads * (multiplying + bringing) * spec.in_features / SIDE
    # A core has room for a few threadgroups: small ones share it.
    share = min(1.0, config.threads / (LANES * BUSY / 4))
    return ceil(blocks / cores) * of_a_block / share / (rate / cores)


def _measures(target: Target) -> tuple[int, float]:
    """Cores, and instructions a second of all lanes."""
    return target.num_sms or ASSUMED_CORES, 1e9 * (target.fp32_gflops or ASSUMED_GFLOPS) / 2


def _ranked(
    default: SimdgroupConfig,
    target: Target,
    changed: Callable[[tuple[int, ...]], SimdgroupConfig],
    every: Iterable[tuple[int, ...]],
    seconds: Callable[[SimdgroupConfig], float],
) -> tuple[SimdgroupConfig, ...]:
    room = target.shared_memory_bytes or 0
    return ranked(default, changed, every, lambda c: seconds(c) if c.threadgroup_bytes <= room else inf)
