"""What a linear's kernels read, copy and multiply, by arithmetic: counts, and no times.

"Floor" is what any kernel must do: read the packed weight and x once and write y once, and multiply every 16 outputs
with every eight tokens once.
"""

from __future__ import annotations

from collections.abc import Sequence

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.division import Division, division_of, part_step
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.cuda.hopper_config import HopperConfig, WarpgroupConfig
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import MatmulSpec

_BYTES = {"uint8": 1, "float16": 2}
_HALF, _FLOAT = 2, 4

Config = TensorCoreConfig | HopperConfig
Kernel = FewConfig | TiledConfig | WarpgroupConfig


def weight_bytes(spec: MatmulSpec, layout: str) -> int:
    """Codes, scales and zero points as they are stored."""
    total = 0
    for array in LAYOUTS[layout].arrays(spec):
        elements = 1
        for extent in array.shape:
            elements *= extent
        total += elements * _BYTES[array.dtype]
    return total


def config_for(spec: MatmulSpec, config: Config, m: int) -> Kernel:
    """Which of the kernels serves M."""
    for few in config.few:
        if m <= few.most_tokens:
            return few
    for tiled in config.middle:
        if m <= tiled.tokens:
            return tiled
    return config.many


def counts_of(
    spec: MatmulSpec, layout: str, config: Config, m: int, launches: Sequence[Launch]
) -> dict[str, int]:
    """Counts of all that is launched for M.

    Args:
        spec: the linear.
        layout: of its weight.
        config: its kernels, and the SMs that they are for.
        m: tokens.
        launches: what they launch.

    Returns:
        "floor_bytes"; "copied_bytes", what blocks ask of memory and caches, sums of parts included; "floor_products"
        and "products", of 16 x 8 x 16, as many in an instruction of a warpgroup as fit into it; "rounds", how many
        times a warp goes through the loop over k, of all warps; "warps" of a block; "blocks", of the matmul itself;
        "whole", tiles that are one block's, and "rest", those that are divided in "parts" of k; "tile_steps", blocks
        of k of all tiles, and "most_steps", of the SM that has most; "exchanged_bytes", what a block reads of the
        shared memory of others; "launches".
    """
    n, k, blocks_of_k = spec.out_features, spec.in_features, spec.in_features // BLOCK_K
    weights, x, y = weight_bytes(spec, layout), m * k * _HALF, m * n * _HALF
    first = launches[0]
    chosen = config_for(spec, config, m)
    exchanged = 0
    if isinstance(chosen, FewConfig):
        # Every block reads x whole; tokens that are not there are not read.
        copied = weights + first.grid[0] * x
        rounds = first.blocks * chosen.warps * -(-blocks_of_k // chosen.warps)
        products = first.blocks * blocks_of_k * chosen.tiles * chosen.eights * 4
        division, longest = Division(first.blocks, 0, 1), 0
    else:
        division = division_of(spec, config, chosen, m)
        tiles, along, run = division.tiles, -(-m // chosen.tokens), chosen.run_of(spec.group_size)
        several = part_step(spec, chosen)
        longest = -(-blocks_of_k // (several * division.parts)) * several if division.rest else 0
        copied = along * weights + tiles * chosen.tokens * k * _HALF
        sums = _FLOAT * division.parts * _outputs_of_rest(spec, chosen, division, m)
        if division.clustered:
            # Each block reads a share of what the others have.
            exchanged = sums // division.parts * (division.parts - 1) // division.parts // division.rest
        else:
            copied += 2 * sums
        if isinstance(chosen, WarpgroupConfig):
            rounds = tiles * blocks_of_k * chosen.threads // 32
            products = rounds * chosen.tiles * (chosen.tokens // 8) * 4
        else:
            of_warps = tiles * blocks_of_k * chosen.token_warps * chosen.row_warps
            products = of_warps * chosen.tiles * chosen.eights * 4
            rounds = of_warps // run
    return {
        "floor_bytes": weights + x + y,
        "copied_bytes": copied + y,
        "floor_products": -(-n // 16) * (k // 16) * -(-m // 8),
        "products": products,
        "rounds": rounds,
        "warps": first.block[0] // 32,
        "blocks": first.blocks,
        "whole": division.whole,
        "rest": division.rest,
        "parts": division.parts if division.rest else 1,
        "tile_steps": division.tiles * blocks_of_k,
        "most_steps": -(-division.whole // config.sms) * blocks_of_k + longest,
        "exchanged_bytes": exchanged,
        "launches": len(launches),
    }


def _outputs_of_rest(
    spec: MatmulSpec, tile: TiledConfig | WarpgroupConfig, division: Division, m: int
) -> int:
    """Outputs of the tiles that are divided; tiles of the same outputs follow each other."""
    along = -(-m // tile.tokens)
    found = 0
    for number in range(division.whole, division.tiles):
        row, token = number // along * tile.rows, number % along * tile.tokens
        found += min(tile.rows, spec.out_features - row) * min(tile.tokens, m - token)
    return found
