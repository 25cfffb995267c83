"""Layouts: what is packed is what the index expressions read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import LEGAL_BITS, MatmulSpec

Array = np.ndarray[Any, Any]
MATMUL_LAYOUTS = ("row", "paired_blocks", "signed_blocks", "bit_planes", "mma_fragments", "simdgroup_rows")


def _weight(spec: MatmulSpec, seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    rows, groups = spec.out_features, spec.groups
    q = rng.integers(0, 1 << spec.bits, (rows, spec.in_features), dtype=np.uint8)
    scales = rng.uniform(0.01, 1, (rows, groups)).astype(np.float16)
    return q, scales, rng.integers(0, 1 << spec.bits, (rows, groups), dtype=np.uint8)


@pytest.mark.parametrize("name", MATMUL_LAYOUTS)
@pytest.mark.parametrize("bits", LEGAL_BITS)
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"),
    [(1, 8, 8), (24, 64, 16), (33, 96, 32), (16, 40, 40), (35, 192, 32), (16, 128, 128)],
)
def test_elements_reads_what_pack_wrote(
    name: str, bits: int, rows: int, columns: int, group_size: int
) -> None:
    if name == "mma_fragments" and columns % 64:
        pytest.skip("a block is 64 k")
    spec = MatmulSpec(columns, rows, bits, group_size, "float32")
    q, scales, zeros = _weight(spec)
    arrays = LAYOUTS[name].pack(spec, q, scales, zeros)
    for array, declared in zip(arrays, LAYOUTS[name].arrays(spec), strict=True):
        assert array.shape == declared.shape
        assert array.dtype == declared.dtype
        assert array.flags.c_contiguous
    n, k = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    code, scale, zero = LAYOUTS[name].elements(spec, arrays, n, k)
    offset = 128 if name == "signed_blocks" and bits == 8 else 0
    np.testing.assert_array_equal(code, q.astype(int) - offset)
    np.testing.assert_array_equal(scale, np.repeat(scales, group_size, axis=1))
    np.testing.assert_array_equal(zero, np.repeat(zeros.astype(int), group_size, axis=1) - offset)


@pytest.mark.parametrize("name", ["paired_blocks", "signed_blocks", "bit_planes", "mma_fragments"])
@pytest.mark.parametrize("bits", LEGAL_BITS)
def test_rows_that_pad_a_block_weigh_nothing(name: str, bits: int) -> None:
    spec = MatmulSpec(64, 19, bits, 32, "float32")
    layout = LAYOUTS[name]
    arrays = layout.pack(spec, *_weight(spec))
    n, k = np.meshgrid(np.arange(19, 32), np.arange(64), indexing="ij")
    _, scale, _ = layout.elements(spec, arrays, n, k)
    np.testing.assert_array_equal(scale, 0)


@pytest.mark.parametrize("name", MATMUL_LAYOUTS)
def test_a_name_leads_to_its_layout(name: str) -> None:
    assert LAYOUTS[name].name == name
    suffixes = [array.suffix for array in LAYOUTS[name].arrays(MatmulSpec(64, 8, 4, 8, "float32"))]
    assert suffixes == ["qweight", "scales", "zeros"]
