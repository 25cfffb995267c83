"""Configurations that cannot work are refused when they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu.dot_matmul import DotConfig, Tile
from awq_tvm.schedules.cpu.float_matmul import FloatConfig, largest_divisor
from awq_tvm.schedules.rule import select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve

FLOAT = FloatConfig(registers=32, use_lookup=True, gemv_blocks=2, gemv_sums=4, tile_rows=8, tile_blocks=3)
DOT = DotConfig(registers=32, planes=1, one_row=Tile(1, 2), few_rows=Tile(4, 2), many_rows=Tile(8, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tile_rows": 11},
        {"gemv_sums": 16},
        {"rows_at_once": 100},
        {"panel_k": 100},
    ],
)
def test_float_config_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError):
        replace(FLOAT, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"planes": 0},
        {"planes": 4},
        {"planes": 3},
        {"one_row": Tile(2, 2)},
        {"few_rows_up_to": 6},
        {"decode_once_from": -1},
        {"rows_at_once": 100},
    ],
)
def test_dot_config_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError):
        replace(DOT, **wrong)


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, 3)])
def test_a_tile_refuses_impossible_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(UnsupportedError):
        Tile(*counts)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 8, 12, 16])
def test_tiles_cover_every_count_of_rows_and_hardly_more(rows: int) -> None:
    for count in range(1, 40):
        sizes = Tile(rows, 1).cover(count)
        computed = sum(size.rows * times for size, times in sizes)
        assert count <= computed <= count + 2
        assert all(times <= 1 for size, times in sizes if size.rows < rows and size.rows != 1)


def test_thirteen_rows_are_eight_and_four_and_one() -> None:
    found = [(size.rows, times) for size, times in Tile(8, 2, ahead=64).cover(13)]
    assert found == [(8, 1), (4, 1), (2, 0), (1, 1)]


def test_a_rule_refuses_to_build_for_a_target_it_does_not_serve() -> None:
    spec = MatmulSpec(64, 32, 4, 32, "float32", activations="int8")
    vnni = resolve("x86-64-v4-vnni")
    rule, match = select(spec, vnni)
    with pytest.raises(UnsupportedError, match="byte dot product"):
        rule.build(spec, resolve("raspberry-pi-4"), match.config)


def test_largest_divisor() -> None:
    assert largest_divisor(576, 256, 8) == 192
    assert largest_divisor(4096, 256, 8) == 256
    assert largest_divisor(24, 256, 8) == 24
    assert largest_divisor(8 * 257, 256, 8) == 8


@pytest.mark.parametrize("tile", [Tile(3, 1), Tile(4, 2), Tile(4, 1, sums=2)])
def test_matrix_instructions_refuse_a_tile_that_they_cannot_compute(tile: Tile) -> None:
    with pytest.raises(UnsupportedError, match="Matrix instructions"):
        DotConfig(
            registers=16,
            planes=1,
            one_row=Tile(1, 2),
            few_rows=Tile(4, 1),
            many_rows=tile,
            rows_at_once=12,
            matrix=True,
        )


def test_matrix_instructions_are_refused_where_there_are_none() -> None:
    spec = MatmulSpec(64, 32, 4, 32, "float32", activations="int8")
    rule, match = select(spec, resolve("graviton-3"))
    assert match.config.matrix
    with pytest.raises(UnsupportedError, match="no matrix instructions"):
        rule.build(spec, resolve("raspberry-pi-5"), match.config)
