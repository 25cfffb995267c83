"""What a tuner can choose for the tensor-core family: what the GPU holds of it, likely ones first."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from statistics import geometric_mean
from typing import TYPE_CHECKING, TypeVar

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.cost import Gpu, few_work, middle_seconds, tiled_work
from awq_tvm.schedules.cuda.hopper_config import HopperConfig
from awq_tvm.schedules.cuda.split_k import limit_of
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
    """All kernels of the middle: their tokens stay, and they share what is chosen.

    The last serves more than its tile as long as those for many tokens would leave SMs idle.
    """
    tokens = [tiled.tokens for tiled in default.middle]

    def changed(sizes: tuple[int, int, int, int, int, int]) -> TensorCoreConfig:
        tiles, token_warps, row_warps, stages, k_warps, split = sizes
        middle = tuple(
            TiledConfig(eights_of(many, token_warps), tiles, token_warps, row_warps, stages, k_warps)
            for many in tokens
        )
        return replace(default, middle=middle, split_blocks=split)

    def seconds(config: TensorCoreConfig) -> float:
        return geometric_mean(
            [middle_seconds(spec, config, tiled, tiled.tokens, gpu) for tiled in config.middle]
        )

    fields = (*(f"middle.{place}" for place in range(len(tokens))), "split_blocks")
    every = product(TILES, TOKEN_WARPS, ROW_WARPS, STAGES, K_WARPS, SPLIT_BLOCKS)
    configs = ranked(default, changed, every, seconds)
    last = limit_of(spec, default, default.middle[-1])
    timed = tuple(dict.fromkeys((*tokens, last)))
    return Part(first, last, fields, configs, timed, (first, *timed), ("stages", "k_warps", "split_blocks"))


def _many_part(spec: MatmulSpec, gpu: Gpu, default: TensorCoreConfig) -> Part:
    """The kernel for many tokens; where another fills the SMs later, the last of the middle serves a little more."""

    def changed(sizes: tuple[int, int, int, int, int]) -> TensorCoreConfig:
        return replace(default, many=TiledConfig(*sizes))

    def seconds(config: TensorCoreConfig) -> float:
        return geometric_mean([tiled_work(spec, config.many, rows).seconds(gpu) for rows in MANY])

    first = limit_of(spec, default, default.middle[-1]) + 1
    configs = ranked(default, changed, product((2, 4, 8), TILES, TOKEN_WARPS, ROW_WARPS, STAGES), seconds)
    # Of a linear so narrow that even prompts divide k, one length that does not.
    timed = tuple(rows for rows in MANY if rows >= first) or (first,)
    checked = tuple(dict.fromkeys((first, *timed)))
    return Part(first, None, ("many",), configs, timed, checked, ("stages",))


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
