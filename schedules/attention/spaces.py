"""What a tuner can choose for attention on CPUs: tiles that the target holds, likely ones first.

The estimate counts the instructions of the two products, of the softmax between them and of moving sums in and out of
registers, as ``cpu.cost`` does for matmuls; a tile that leaves the first-level cache costs more, and one that the
second does not hold, or whose sums no registers hold, is left out.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil, inf
from statistics import geometric_mean
from typing import TYPE_CHECKING

from awq_tvm.schedules.attention.shape import LANES, AttentionConfig, AttentionShape, Kernel, Tiles
from awq_tvm.schedules.cpu.cost import FMA_LATENCY, TILE_OVERHEAD, Loop, instructions_a_vector
from awq_tvm.schedules.ranking import ranked
from awq_tvm.schedules.rule import Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from awq_tvm.targets import Target

CONTEXT = 509
"""Keys in the cache when a kernel is timed: no whole number of pages."""

SPLIT_KEYS = (64, 128)
"""Longer runs would leave cores idle at this context, which one thread's times do not tell."""

VECTORS = (1, 2, 3, 4)
KEY_BLOCKS = (1, 2, 4, 8)
ROWS, ROW_BLOCKS = range(2, 13), range(1, 7)
"""Of many queries."""

NEW_TOKENS = (16, 128)
"""That stand for short and long prompts."""

SOFTMAX_OPERATIONS, ACROSS_CYCLES = 16, 40
"""Of a vector of scores, and of a row's maximum across lanes."""

REGISTERS = {1: 32, 2: 8, 4: 8}
"""Vectors of 64 bytes in registers, by how many registers one of them takes."""


def attention_parts(
    kernel: Kernel, shape: AttentionShape, target: Target, default: AttentionConfig
) -> tuple[Part, ...]:
    """All numbers of sequences or new tokens together.

    Args:
        kernel: which.
        shape: its sizes.
        target: the CPU.
        default: the family's configuration for it.
    """
    if kernel == "decode":
        configs = ranked(
            default,
            lambda choice: AttentionConfig(*choice),
            product(_decode_tiles(shape), SPLIT_KEYS),
            lambda config: _decode_cycles(shape, target, config),
        )
        return (Part(1, None, ("tiles", "split_keys"), configs, (1,), (1, 3), ("key_blocks", "split_keys")),)
    configs = ranked(
        default,
        lambda tiles: replace(default, tiles=tiles),
        _prefill_tiles(),
        lambda config: geometric_mean([prefill_cycles(kernel, shape, target, config, n) for n in NEW_TOKENS]),
    )
    return (Part(1, None, ("tiles",), configs, NEW_TOKENS, (1, 17, 130), ("key_blocks", "row_blocks")),)


def _decode_tiles(shape: AttentionShape) -> Iterator[Tiles]:
    for row_blocks, vectors, key_blocks in product(range(1, shape.group + 1), VECTORS, KEY_BLOCKS):
        rows = ceil(shape.group / row_blocks)
        if ceil(shape.group / rows) == row_blocks:
            yield Tiles(rows, vectors, row_blocks, key_blocks)


def _prefill_tiles() -> Iterator[Tiles]:
    for rows, vectors, row_blocks, key_blocks in product(ROWS, VECTORS, ROW_BLOCKS, KEY_BLOCKS):
        yield Tiles(rows, vectors, row_blocks, key_blocks)


def _decode_cycles(shape: AttentionShape, target: Target, config: AttentionConfig) -> float:
    """One token and key-value head, with the merge of its splits."""
    splits = ceil(CONTEXT / config.split_keys)
    merge = (
        shape.group * splits * (2 * shape.head_dim / LANES * instructions_a_vector(target) + TILE_OVERHEAD)
    )
    return splits * tile_cycles(shape, target, config.tiles, shape.group, ceil(CONTEXT / splits)) + merge


def prefill_cycles(
    kernel: Kernel, shape: AttentionShape, target: Target, config: AttentionConfig, tokens: int
) -> float:
    """So many new tokens and a key-value head: against the cache, or against those before each."""
    tiles, rows = config.tiles, tokens * shape.group
    whole = 0.0
    for first in range(0, rows, tiles.tile_rows):
        last = min(rows, first + tiles.tile_rows)
        keys = ceil(last / shape.group) if kernel == "prefill_ragged" else CONTEXT
        whole += tile_cycles(shape, target, tiles, last - first, keys)
    return whole


def tile_cycles(shape: AttentionShape, target: Target, tiles: Tiles, rows: int, keys: int) -> float:
    """One tile of queries against a run of keys; infinite where the target does not hold the tile."""
    parts = instructions_a_vector(target)
    registers = REGISTERS[parts]
    r, v, head_dim = tiles.rows, tiles.vectors, shape.head_dim
    live = r * v + v + 1
    scratch = 4 * tiles.tile_rows * (2 * head_dim + tiles.tile_keys)
    if live > registers or scratch > (target.l2_bytes or 256 * 2**10):
        return inf
    far = 1.1 if scratch > (target.l1_bytes or 32 * 2**10) * 3 / 4 else 1.0
    stored = {"float32": 1.0, "float16": 0.5, "int8": 0.25}[shape.page_dtype]
    widening = 0 if stored == 1 else 1
    loop = Loop(loads=v * stored, broadcasts=r, operations=r * v + widening * v, chain=FMA_LATENCY, live=live)
    moved = Loop(loads=2 * r * v, broadcasts=0, operations=0).cycles(target, registers)
    soft = Loop(loads=4, broadcasts=0, operations=SOFTMAX_OPERATIONS).cycles(target, registers)
    row_blocks, key_tiles = ceil(rows / r), ceil(keys / tiles.tile_keys)
    key_blocks, columns = ceil(keys / tiles.block_keys), ceil(head_dim / LANES / v)
    step = loop.cycles(target, registers)
    scoring = row_blocks * key_blocks * (head_dim * step + moved + TILE_OVERHEAD)
    gathering = row_blocks * columns * (keys * step + key_tiles * (moved + TILE_OVERHEAD))
    softening = rows * (key_blocks * v * soft + key_tiles * ACROSS_CYCLES)
    # Keys and values come from further away than the tile: once for each block of rows.
    reading = 2 * keys * head_dim / LANES * stored * parts
    return far * (scoring + softening + gathering) + reading
