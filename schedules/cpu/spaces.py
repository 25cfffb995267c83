"""What a tuner can choose for the CPU families: tiles that the target's registers hold, likely ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from awq_tvm.schedules.cpu.cost import dense_cycles, dot_cycles, float_row_cycles, float_rows_cycles
from awq_tvm.schedules.cpu.dot_matmul import Tile
from awq_tvm.schedules.cpu.plane_codes import planes
from awq_tvm.schedules.cpu.vectors import LANES
from awq_tvm.schedules.ranking import ranked
from awq_tvm.schedules.rule import Part

if TYPE_CHECKING:
    from awq_tvm.schedules.cpu.dense import DenseConfig
    from awq_tvm.schedules.cpu.dot_matmul import DotConfig
    from awq_tvm.schedules.cpu.float_matmul import FloatConfig
    from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
    from awq_tvm.targets import Target

AHEAD = (0, 2048, 4096, 8192, 16384)
"""Bytes of codes that are asked for before they are read."""
ROWS_AT_ONCE = (64, 128, 256)
"""About so many rows of x are worked on together; the multiples of a tile's rows below count."""
DECODE_ONCE_FROM = (0, 1, 64)
"""Rows from which codes are decoded once for all tiles of rows; 0 never does."""
PANEL_K = (64, 128, 256, 512)
MANY = (16, 128)
"""M that stand for short and long prompts."""
TAILS = (9, 17, 130)
"""M at which tiles of many rows have rows left over."""


def dot_parts(spec: MatmulSpec, target: Target, default: DotConfig) -> tuple[Part, ...]:
    """M = 1, up to ``few_rows_up_to``, and beyond: a tile each.

    Args:
        spec: the linear.
        target: the CPU.
        default: the family's configuration for it.
    """
    few = default.few_rows_up_to
    in_planes = bool(planes(spec, target))
    decided = in_planes or spec.bits > 4  # codes in bit planes always are, wider ones never
    decode_once_from = sorted({default.decode_once_from, *(() if decided else DECODE_ONCE_FROM)})
    all_few = tuple(dict.fromkeys((2, max(2, few // 2), few)))

    def cost(tile_of: Callable[[DotConfig], Tile], at: tuple[int, ...]) -> Callable[[DotConfig], float]:
        def cycles(config: DotConfig, rows: int) -> float:
            return dot_cycles(
                spec,
                target,
                tile_of(config),
                digits=config.planes,
                registers=config.registers,
                rows=rows,
                matrix=config.matrix and rows > few,
                decoded=rows > few and (in_planes or 0 < config.decode_once_from <= rows),
            )

        return lambda config: geometric_mean([cycles(config, rows) for rows in at])

    one = (
        {"one_row": Tile(1, blocks, sums, ahead)}
        for blocks, sums, ahead in product(_blocks(spec.out_features, 6), (1, 2), _ahead(target))
    )
    some = (
        {"few_rows": Tile(rows, blocks, sums, ahead)}
        for rows, blocks, sums, ahead in product(
            _divisors(few), _blocks(spec.out_features, 6), (1, 2), _ahead(target)
        )
    )
    many = (
        {
            "many_rows": Tile(rows, blocks, 1, 0 if matrix else ahead),
            "rows_at_once": at_once,
            "decode_once_from": decode,
            "matrix": matrix,
        }
        for rows, blocks, ahead, matrix in product(
            range(1, 17),
            _blocks(spec.out_features, 6),
            sorted({0, default.one_row.ahead}),
            sorted({default.matrix, False}),
        )
        for at_once in _multiples(rows, ROWS_AT_ONCE)
        for decode in decode_once_from
    )
    return (
        Part(
            1, 1, ("one_row",), _ranked(default, one, cost(lambda c: c.one_row, (1,))), (1,), (1,), ("ahead",)
        ),
        Part(
            2,
            few,
            ("few_rows",),
            _ranked(default, some, cost(lambda c: c.few_rows, all_few)),
            all_few,
            (*all_few, few - 1),
            ("ahead",),
        ),
        Part(
            few + 1,
            None,
            ("many_rows", "rows_at_once", "decode_once_from", "matrix"),
            _ranked(default, many, cost(lambda c: c.many_rows, MANY)),
            MANY,
            (*TAILS, *MANY),
            ("rows_at_once", "ahead"),
        ),
    )


def float_parts(spec: MatmulSpec, target: Target, default: FloatConfig) -> tuple[Part, ...]:
    """M = 1 and beyond."""
    one = (
        {"gemv_blocks": blocks, "gemv_sums": sums}
        for blocks, sums in product(_blocks(spec.out_features, 6), (1, 2, 4, 8))
    )
    many = (
        {"tile_rows": rows, "tile_blocks": blocks, "panel_k": panel, "rows_at_once": at_once}
        for rows, blocks, panel in product(range(1, 17), _blocks(spec.out_features, 6), PANEL_K)
        for at_once in _multiples(rows, ROWS_AT_ONCE)
    )
    return (
        Part(
            1,
            1,
            ("gemv_blocks", "gemv_sums"),
            _ranked(default, one, lambda c: float_row_cycles(spec, target, c)),
            (1,),
            (1,),
        ),
        Part(
            2,
            None,
            ("tile_rows", "tile_blocks", "panel_k", "rows_at_once"),
            _ranked(
                default, many, lambda c: geometric_mean([float_rows_cycles(spec, target, c, m) for m in MANY])
            ),
            MANY,
            (2, *TAILS, *MANY),
            ("panel_k", "rows_at_once"),
        ),
    )


def dense_parts(spec: DenseSpec, target: Target, default: DenseConfig) -> tuple[Part, ...]:
    """M = 1 and beyond."""
    one = (
        {"one_row_blocks": blocks, "one_row_sums": sums}
        for blocks, sums in product(_blocks(spec.out_features, 6), (1, 2, 4, 8))
        if spec.in_features % sums == 0
    )
    many = (
        {"tile_rows": rows, "tile_blocks": blocks}
        for rows, blocks in product(range(1, 17), _blocks(spec.out_features, 6))
    )
    return (
        Part(
            1,
            1,
            ("one_row_blocks", "one_row_sums"),
            _ranked(default, one, lambda c: dense_cycles(spec, target, c, 1)),
            (1,),
            (1,),
        ),
        Part(
            2,
            None,
            ("tile_rows", "tile_blocks"),
            _ranked(
                default, many, lambda c: geometric_mean([dense_cycles(spec, target, c, m) for m in MANY])
            ),
            MANY,
            (2, *TAILS, *MANY),
        ),
    )


def _ranked(default: Any, changes: Iterable[dict[str, Any]], cost: Callable[[Any], float]) -> tuple[Any, ...]:
    return ranked(default, lambda change: replace(default, **change), changes, cost)


def _blocks(out_features: int, largest: int) -> range:
    """Blocks of 16 outputs: no more than there are."""
    return range(1, min(largest, -(-out_features // LANES)) + 1)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _multiples(of: int, about: Iterable[int]) -> list[int]:
    """The largest multiple up to each number, each once."""
    return list(dict.fromkeys(max(of, number // of * of) for number in about))


def _ahead(target: Target) -> list[int]:
    """Distances of which two fit the first-level cache."""
    return [ahead for ahead in AHEAD if 2 * ahead <= (target.l1_bytes or 32 * 2**10)]
