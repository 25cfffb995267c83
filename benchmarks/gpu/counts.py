"""What a linear's kernels read, copy and multiply, by arithmetic: counts, and no times.

"Floor" is what any kernel must do: read the packed weight and x once and write y once, and multiply every 16 outputs
with every eight tokens once.
"""

from __future__ import annotations

from collections.abc import Sequence

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.cuda.split_k import limit_of
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import MatmulSpec

_BYTES = {"uint8": 1, "float16": 2}
_HALF, _FLOAT = 2, 4


def weight_bytes(spec: MatmulSpec, layout: str) -> int:
    """Codes, scales and zero points as they are stored."""
    total = 0
    for array in LAYOUTS[layout].arrays(spec):
        elements = 1
        for extent in array.shape:
            elements *= extent
        total += elements * _BYTES[array.dtype]
    return total


def config_for(spec: MatmulSpec, config: TensorCoreConfig, m: int) -> FewConfig | TiledConfig:
    """Which of the kernels serves M."""
    for few in config.few:
        if m <= few.most_tokens:
            return few
    for tiled in config.middle:
        if m <= limit_of(spec, config, tiled):
            return tiled
    return config.many


def counts_of(
    spec: MatmulSpec, layout: str, config: TensorCoreConfig, m: int, launches: Sequence[Launch]
) -> dict[str, int]:
    """Counts of all that is launched for M.

    Returns:
        "floor_bytes"; "copied_bytes", what blocks ask of memory and caches, sums of parts included; "floor_hmma" and
        "hmma", matrix products of 16 x 8 x 16; "rounds", how many times a warp goes through the loop over k, of all
        warps; "blocks", of the matmul itself; "parts" of k; "launches".
    """
    n, k, blocks_of_k = spec.out_features, spec.in_features, spec.in_features // BLOCK_K
    weights, x, y = weight_bytes(spec, layout), m * k * _HALF, m * n * _HALF
    first = launches[0]
    chosen = config_for(spec, config, m)
    if isinstance(chosen, FewConfig):
        # Every block reads x whole; tokens that are not there are not read.
        copied = weights + first.grid[0] * x
        rounds = first.blocks * chosen.warps * -(-blocks_of_k // chosen.warps)
        products = first.blocks * blocks_of_k * chosen.tiles * chosen.eights * 4
    else:
        tiles = first.grid[0] * first.grid[1]
        copied = first.grid[1] * weights + tiles * chosen.tokens * k * _HALF
        warps = chosen.token_warps * chosen.row_warps
        rounds = tiles * blocks_of_k * warps
        products = rounds * chosen.tiles * chosen.eights * 4
    parts = first.grid[2]
    sums = 2 * parts * m * n * _FLOAT if parts > 1 else 0
    return {
        "floor_bytes": weights + x + y,
        "copied_bytes": copied + sums + y,
        "floor_hmma": -(-n // 16) * (k // 16) * -(-m // 8),
        "hmma": products,
        "rounds": rounds,
        "blocks": first.blocks,
        "parts": parts,
        "launches": len(launches),
    }
