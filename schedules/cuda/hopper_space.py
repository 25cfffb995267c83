"""What a tuner can choose for Hopper's family: up to 64 tokens as for other GPUs, tiles of warpgroups above."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil
from statistics import geometric_mean
from typing import TYPE_CHECKING

from awq_tvm.schedules.cuda.config import TiledConfig, tile_bytes
from awq_tvm.schedules.cuda.cost import LATENCY_S, LAUNCH_S, Gpu, Work, tiled_seconds
from awq_tvm.schedules.cuda.division import Division, division_of, sums_bytes
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig
from awq_tvm.schedules.cuda.spaces import (
    K_WARPS,
    MANY,
    ROW_WARPS,
    SPLIT_BLOCKS,
    STAGES,
    TILES,
    TOKEN_WARPS,
    eights_of,
    ends,
    few_part,
)
from awq_tvm.schedules.ranking import ranked, with_place
from awq_tvm.schedules.rule import Part

if TYPE_CHECKING:
    from awq_tvm.schedules.spec import MatmulSpec
    from awq_tvm.targets import Target

TOKENS, WARPGROUP_TILES, WARPGROUPS, WARPGROUP_STAGES = (64, 128, 192, 256), (1, 2), (1, 2, 4), (4, 5, 6, 8)
_REFINED = ("stages", "split_blocks")
A_STEP, A_TILE = 80, 100
"""Instructions of a warp for a block of k, and for each 16 x 64 of its weights: as nvcc has them, about."""


def hopper_parts(spec: MatmulSpec, target: Target, default: HopperConfig) -> tuple[Part, ...]:
    """A part for each kernel for a few tokens, one for those in the middle that `mma` computes, and two for `wgmma`.

    Args:
        spec: the linear.
        target: the GPU; what its SMs do not hold is left out.
        default: the family's configuration for it; the last of its ``middle`` is of warpgroups.
    """
    gpu = Gpu.of(target)
    parts, first = [], 1
    for place, few in enumerate(default.few):
        parts.append(few_part(spec, gpu, default, place, first))
        first = few.most_tokens + 1
    last = default.middle[-2].tokens
    return (
        *parts,
        _middle_part(spec, gpu, default, first),
        _tile_part(spec, gpu, default, last + 1),
        _many_part(spec, gpu, default, default.middle[-1].tokens + 1),
    )


def warpgroup_work(spec: MatmulSpec, config: WarpgroupConfig, rows: int, division: Division) -> Work:
    """What a kernel of warpgroups does.

    Args:
        spec: the linear.
        config: its tile.
        rows: M.
        division: of its tiles, see ``division_of``.
    """
    tile, tiles = tile_bytes(spec.bits, spec.group_size), config.rows // 16
    across, along = ceil(spec.out_features / config.rows), ceil(rows / config.tokens)
    steps, blocks = ceil(spec.in_features / BLOCK_K), across * along
    block_bytes = config.block_bytes(spec.bits, spec.group_size)
    return Work(
        blocks=division.blocks,
        threads=config.threads,
        shared_bytes=config.shared_bytes(spec.bits, spec.group_size),
        # A sum of `mma` comes with its operands: these come with four registers for each product under way.
        sums=2 * config.sums // 3,
        under_way=(config.stages - 2) * block_bytes,
        memory_bytes=across * tiles * steps * tile,
        cache_bytes=blocks * steps * block_bytes + division.sums * sums_bytes(config),
        operations=blocks * tiles * steps * config.tokens * 2 * 16 * BLOCK_K,
        instructions=blocks * steps * (A_STEP * config.threads / 32 + A_TILE * tiles),
        beside_s=LATENCY_S + (LAUNCH_S if division.adds_later else 0.0),
        division=division,
    )


def _seconds(spec: MatmulSpec, config: HopperConfig, tile: WarpgroupConfig, rows: int, gpu: Gpu) -> float:
    return warpgroup_work(spec, tile, rows, division_of(spec, config, tile, rows)).seconds(gpu)


def _middle_part(spec: MatmulSpec, gpu: Gpu, default: HopperConfig, first: int) -> Part:
    """The kernels before those of warpgroups: their tokens stay, and they share what is chosen."""
    others = default.middle[:-1]
    tokens = [one.tokens for one in others]

    def tiled(sizes: tuple[int, int, int, int, int, int]) -> list[TiledConfig]:
        tiles, token_warps, *others = sizes
        return [TiledConfig(eights_of(m, token_warps), tiles, token_warps, *others) for m in tokens]

    def changed(sizes: tuple[int, int, int, int, int, int]) -> HopperConfig:
        return replace(default, middle=(*tiled(sizes), default.middle[-1]))

    def seconds(config: HopperConfig) -> float:
        tiles = [one for one in config.middle if isinstance(one, TiledConfig)]
        return geometric_mean([tiled_seconds(spec, config, one, one.tokens, gpu) for one in tiles])

    fields = tuple(f"middle.{place}" for place in range(len(others)))
    every = product(TILES, TOKEN_WARPS, ROW_WARPS, STAGES, K_WARPS, SPLIT_BLOCKS)
    configs = ranked(default, changed, every, seconds)
    changing = ("stages", "k_warps", "split_blocks")
    return Part(first, tokens[-1], fields, configs, tuple(tokens), (first, *tokens), changing)


def _tile_part(spec: MatmulSpec, gpu: Gpu, default: HopperConfig, first: int) -> Part:
    """The kernel of warpgroups whose blocks divide k: its tokens stay."""
    place = len(default.middle) - 1
    tokens = default.middle[place].tokens

    def changed(sizes: tuple[int, int, int, int]) -> HopperConfig:
        return replace(default, middle=with_place(default.middle, place, WarpgroupConfig(tokens, *sizes)))

    def seconds(config: HopperConfig) -> float:
        tile = config.middle[place]
        assert isinstance(tile, WarpgroupConfig)
        return _seconds(spec, config, tile, tokens, gpu)

    choices = product(WARPGROUP_TILES, WARPGROUPS, WARPGROUP_STAGES, SPLIT_BLOCKS)
    configs = ranked(default, changed, choices, seconds)
    checked = ends(first, tokens)
    return Part(first, tokens, (f"middle.{place}",), configs, (tokens,), checked, _REFINED, True)


def _many_part(spec: MatmulSpec, gpu: Gpu, default: HopperConfig, first: int) -> Part:
    """The kernel for many tokens."""

    def changed(sizes: tuple[int, int, int, int, int]) -> HopperConfig:
        return replace(default, many=WarpgroupConfig(*sizes))

    def seconds(config: HopperConfig) -> float:
        return geometric_mean([_seconds(spec, config, config.many, rows, gpu) for rows in MANY])

    choices = product(TOKENS, WARPGROUP_TILES, WARPGROUPS, WARPGROUP_STAGES, SPLIT_BLOCKS)
    configs = ranked(default, changed, choices, seconds)
    timed = tuple(rows for rows in MANY if rows >= first)
    return Part(first, None, ("many",), configs, timed, (first, *timed), _REFINED, True)
