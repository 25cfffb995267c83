"""What suits a linear on tensor cores before anything was measured."""

from __future__ import annotations

from awq_tvm.schedules.cuda.config import (
    ASSUMED_SMS,
    ROWS,
    FewConfig,
    TensorCoreConfig,
    TiledConfig,
)
from awq_tvm.schedules.cuda.division import MMA_PRODUCTS, best_tile, columns, divide, most_parts
from awq_tvm.schedules.spec import MatmulSpec

MANY_TOKENS = 512
"""M for which the tile for many tokens is chosen: of a prompt."""


def default_config(
    spec: MatmulSpec, sms: int | None, shared_memory_bytes: int | None, clusters: bool = False
) -> TensorCoreConfig:
    """What suits a linear before anything was measured.

    Args:
        spec: the linear. Short rows are divided among fewer warps; wide codes take twice the room, and fewer stages
            bring as many bytes.
        sms: of the target; None where it is unknown.
        shared_memory_bytes: that a block may have.
        clusters: whether blocks can be launched in clusters.
    """
    warps = 8 if spec.in_features >= 2048 else 4
    stages = 4 if spec.bits <= 4 else 3
    wanted = sms or ASSUMED_SMS
    # Blocks of twice as many outputs read x half as often: worth it where they fill three quarters of the SMs.
    blocks = -(-spec.out_features // (2 * ROWS))
    tiles = 2 if 4 * blocks >= 3 * wanted else 1
    few: tuple[FewConfig, ...] = (FewConfig(1, tiles, warps, stages),)
    # Its copies have to cover the latency of memory where it is the only block of an SM, and some have none.
    sixteen = TiledConfig(2, 2, 1, 4, 6 if spec.bits <= 4 else 4, 2)
    middle: tuple[TiledConfig, ...] = (
        TiledConfig(4, 2, 1, 4, stages, 2),
        TiledConfig(8, 2, 1, 4, stages - 1, 2),
    )
    if _fill_half(spec, sixteen, wanted):
        middle = (sixteen, *middle)
    else:
        least = FewConfig(2, tiles, warps, stages)
        if least.shared_bytes(spec.bits, spec.group_size) > (shared_memory_bytes or 0) or blocks > (sms or 0):
            # One that has an SM for itself wants as much on its way as there is room for. Else two are to share it;
            # so too where nobody knows how many SMs there are.
            least = FewConfig(2, tiles, warps, stages - 1 if tiles == 2 else stages)
        few = (*few, least)
    many = best_tile(spec, (TiledConfig(8, 2), middle[-1]), MANY_TOKENS, wanted, MMA_PRODUCTS, clusters)
    return TensorCoreConfig(few=few, middle=middle, many=many, sms=wanted, clusters=clusters)


def _fill_half(spec: MatmulSpec, tiled: TiledConfig, sms: int) -> bool:
    """Whether blocks of so many outputs, and parts of k, leave no more than half of the SMs without one.

    16 tokens of x are as many bytes as 64 outputs of a weight of 4 bits: blocks of 16 or 32 outputs, which read x
    whole each, ask more of the second-level cache than it gives while memory is read. Those of 128 do not.
    """
    found = divide(columns(spec, tiled), sms, most_parts(spec, tiled))
    return 2 * int(found.blocks) >= sms
