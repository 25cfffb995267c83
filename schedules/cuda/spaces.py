"""What a tuner can choose for the tensor-core family: what the GPU holds of it, likely ones first."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from statistics import geometric_mean
from typing import TYPE_CHECKING, TypeVar

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.cost import Gpu, few_work, tiled_seconds
from awq_tvm.schedules.cuda.hopper_config import HopperConfig
from awq_tvm.schedules.ranking import ranked, with_place
from awq_tvm.schedules.rule import Part

if TYPE_CHECKING:
    from awq_tvm.schedules.spec import MatmulSpec
    from awq_tvm.targets import Target

_Config = TypeVar("_Config", TensorCoreConfig, HopperConfig)

WARPS = (2, 4, 8, 16)
STAGES = (2, 3, 4, 5, 6, 8)
TILES = (1, 2, 4)
TOKEN_WARPS, ROW_WARPS = (1, 2, 4), (1, 2, 4, 8)
K_WARPS = (1, 2)
SPLIT_BLOCKS = (4, 8, 16)
"""Blocks of 64 k that a part of k has at least."""
MANY = (128, 512, 2048)
"""M that stand for prompts."""


def tensor_core_parts(spec: MatmulSpec, target: Target, default: TensorCoreConfig) -> tuple[Part, ...]:
    """A part for each kernel for a few tokens, one for the middle ones, and one for many tokens.

    Args:
        spec: the linear.
        target: the GPU; what its SMs do not hold is left out.
        default: the family's configuration for it.
    """
    gpu = Gpu.of(target)
    parts, first = [], 1
    for place, few in enumerate(default.few):
        parts.append(few_part(spec, gpu, default, place, first))
        first = few.most_tokens + 1
    parts.append(_middle_part(spec, gpu, default, first))
    return (*parts, _many_part(spec, gpu, default))


def few_part(spec: MatmulSpec, gpu: Gpu, default: _Config, place: int, first: int) -> Part:
    """A kernel for so many eights of tokens: the range stays, how its block works is chosen.

    Args:
        spec: the linear.
        gpu: it.
        default: the family's configuration.
        place: of the kernel among its ``few``.
        first: the smallest M.
    """
    base = default.few[place]

    def changed(sizes: tuple[int, int, int]) -> _Config:
        return replace(default, few=with_place(default.few, place, FewConfig(base.eights, *sizes)))

    def seconds(config: _Config) -> float:
        return few_work(spec, config.few[place]).seconds(gpu)

    configs = ranked(default, changed, product(TILES, WARPS, STAGES), seconds)
    last = base.most_tokens
    return Part(first, last, (f"few.{place}",), configs, ends(first, last), ends(first, last), ("stages",))


def _middle_part(spec: MatmulSpec, gpu: Gpu, default: TensorCoreConfig, first: int) -> Part:
    """All kernels of the middle: their tokens stay, and they share what is chosen."""
    tokens = [tiled.tokens for tiled in default.middle]

    def changed(sizes: tuple[int, int, int, int, int, int]) -> TensorCoreConfig:
        tiles, token_warps, row_warps, stages, k_warps, split = sizes
        middle = tuple(
            TiledConfig(eights_of(many, token_warps), tiles, token_warps, row_warps, stages, k_warps, split)
            for many in tokens
        )
        return replace(default, middle=middle)

    def seconds(config: TensorCoreConfig) -> float:
        return geometric_mean(
            [tiled_seconds(spec, config, tiled, tiled.tokens, gpu) for tiled in config.middle]
        )

    fields = tuple(f"middle.{place}" for place in range(len(tokens)))
    every = product(TILES, TOKEN_WARPS, ROW_WARPS, STAGES, K_WARPS, SPLIT_BLOCKS)
    configs = ranked(default, changed, every, seconds)
    changing = ("stages", "k_warps", "split_blocks")
    return Part(first, tokens[-1], fields, configs, tuple(tokens), (first, *tokens), changing)


def _many_part(spec: MatmulSpec, gpu: Gpu, default: TensorCoreConfig) -> Part:
    """The kernel for many tokens."""

    def changed(sizes: tuple[int, int, int, int, int, int]) -> TensorCoreConfig:
        eights, tiles, token_warps, row_warps, stages, split = sizes
        tile = TiledConfig(eights, tiles, token_warps, row_warps, stages, split_blocks=split)
        return replace(default, many=tile)

    def seconds(config: TensorCoreConfig) -> float:
        return geometric_mean([tiled_seconds(spec, config, config.many, rows, gpu) for rows in MANY])

    first = default.middle[-1].tokens + 1
    every = product((2, 4, 8), TILES, TOKEN_WARPS, ROW_WARPS, STAGES, SPLIT_BLOCKS)
    configs = ranked(default, changed, every, seconds)
    return Part(first, None, ("many",), configs, MANY, (first, *MANY), ("stages", "split_blocks"))


def eights_of(tokens: int, warps: int) -> int:
    """Of each warp, where so many share the tokens of a block.

    Raises:
        UnsupportedError: they do not divide them.
    """
    if tokens % (8 * warps):
        raise UnsupportedError(f"{warps} warps do not divide {tokens} tokens in eights")
    return tokens // (8 * warps)


def ends(first: int, last: int) -> tuple[int, ...]:
    """Of a range, one where it is a single number."""
    return tuple(dict.fromkeys((first, last)))
