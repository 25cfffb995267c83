"""The reference PrimFuncs, built as they are, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm

from awq_tvm import ir_attrs
from awq_tvm.schedules import reference
from awq_tvm.schedules.layout import DENSE_LAYOUTS, LAYOUTS, DenseLayout
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from tests.support.gpu_kernels import FUNCTIONS

Array = np.ndarray[Any, Any]
SPEC = MatmulSpec(64, 24, 4, 16, "float32")
ROUNDING = {"float32": 6e-8, "float16": 5e-4}


def run(func: tvm.tirx.PrimFunc, inputs: list[Array], shape: tuple[int, ...], dtype: str) -> Array:
    """Compile for this machine and call."""
    compiled = tvm.compile(func.with_attr("global_symbol", "main"), "llvm")
    out = tvm.runtime.tensor(np.full(shape, np.nan, dtype))
    compiled["main"](*(tvm.runtime.tensor(array) for array in inputs), out)
    return out.numpy()


def weight(spec: MatmulSpec, seed: int = 0) -> tuple[Array, Array, Array]:
    """Codes, scales and zero points."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 1 << spec.bits, (spec.out_features, spec.in_features), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, (spec.out_features, spec.groups)).astype(np.float16)
    return q, scales, rng.integers(0, 1 << spec.bits, (spec.out_features, spec.groups), dtype=np.uint8)


def dequantized(spec: MatmulSpec, q: Array, scales: Array, zeros: Array) -> Array:
    """W in float64."""
    wide = [np.repeat(array.astype(np.float64), spec.group_size, axis=1) for array in (scales, zeros)]
    return (q - wide[1]) * wide[0]


@pytest.mark.parametrize("layout", ["row", "paired_blocks", "signed_blocks", "bit_planes", "mma_fragments"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_dequantize_is_exact(layout: str, bits: int) -> None:
    """A difference of codes times a float16 scale has at most 8 + 11 bits."""
    spec = replace(SPEC, bits=bits)
    codes = weight(spec)
    func = reference.dequantize(spec, LAYOUTS[layout])
    found = run(func, list(LAYOUTS[layout].pack(spec, *codes)), (24, 64), "float32")
    np.testing.assert_array_equal(found, dequantized(spec, *codes))
    assert func.attrs[ir_attrs.OP] == ir_attrs.OP_DEQUANTIZE
    assert (func.attrs[ir_attrs.BITS], func.attrs[ir_attrs.GROUP_SIZE]) == (bits, 16)
    assert MatmulSpec.from_json(func.attrs[ir_attrs.MATMUL_SPEC]) == spec
    assert func.attrs[ir_attrs.LAYOUT] == layout


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_dequantize_matmul_is_within_rounding(function: str | None, dtype: str) -> None:
    spec = replace(SPEC, dtype=dtype, has_bias=True, activation_function=function, has_residual=True)
    rng = np.random.default_rng(1)
    codes = weight(spec)
    x, bias, residual = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 64), (24,), (5, 24)))
    layout = LAYOUTS["paired_blocks"]
    func = reference.dequantize_matmul(spec, layout)
    found = run(func, [x, *layout.pack(spec, *codes), bias, residual], (5, 24), dtype)
    matrix = dequantized(spec, *codes).astype(dtype).astype(np.float64)
    wide = [array.astype(np.float64) for array in (x, bias, residual)]
    expected = FUNCTIONS[function](wide[0] @ matrix.T + wide[1]) + wide[2]
    # 64 products and sums in float32, an epilogue of a dozen steps, one rounding to the output's dtype.
    sums = np.abs(wide[0]) @ np.abs(matrix).T + np.abs(wide[1])
    bound = (64 + 12) * 6e-8 * sums + 1e-6 + ROUNDING[dtype] * np.abs(expected)
    assert np.all(np.abs(found - expected) <= bound)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_neighbouring_sums_are_gated(dtype: str) -> None:
    spec = replace(SPEC, dtype=dtype, output_gate="silu")
    codes, layout = weight(spec), LAYOUTS["mma_fragments"]
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(dtype)
    found = run(reference.dequantize_matmul(spec, layout), [x, *layout.pack(spec, *codes)], (5, 12), dtype)
    matrix = dequantized(spec, *codes).astype(dtype).astype(np.float64)
    sums = x.astype(np.float64) @ matrix.T
    expected = FUNCTIONS["silu"](sums[:, 0::2]) * sums[:, 1::2]
    of_sums = (64 + 12) * 6e-8 * (np.abs(x).astype(np.float64) @ np.abs(matrix).T)
    bound = 1.2 * of_sums[:, 0::2] * np.abs(sums[:, 1::2]) + of_sums[:, 1::2] * np.abs(sums[:, 0::2])
    assert np.all(np.abs(found - expected) <= bound + 1e-6 + ROUNDING[dtype] * np.abs(expected))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("weight_dtype", ["float16", "float32"])
def test_dense_matmul_is_within_rounding(weight_dtype: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    x, matrix = rng.standard_normal((3, 40)).astype(dtype), rng.standard_normal((7, 40)).astype(weight_dtype)
    func = reference.dense_matmul(DenseSpec(40, 7, weight_dtype, dtype))
    found = run(func, [x, matrix], (3, 7), dtype)
    wide = x.astype(np.float64), matrix.astype(np.float64)
    expected = wide[0] @ wide[1].T
    bound = 40 * 6e-8 * (np.abs(wide[0]) @ np.abs(wide[1]).T) + ROUNDING[dtype] * np.abs(expected)
    assert np.all(np.abs(found - expected) <= bound)
    assert func.attrs[ir_attrs.OP] == ir_attrs.OP_DENSE_MATMUL


@pytest.mark.parametrize("layout", ["row", "paired_blocks", "signed_blocks", "bit_planes", "mma_fragments"])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantize_take_is_exact(layout: str, bits: int) -> None:
    spec = replace(SPEC, bits=bits)
    codes = weight(spec)
    ids = np.array([0, 23, 7, 7, 1], np.int32)
    func = reference.dequantize_take(spec, LAYOUTS[layout])
    found = run(func, [*LAYOUTS[layout].pack(spec, *codes), ids], (5, 64), "float32")
    np.testing.assert_array_equal(found, dequantized(spec, *codes)[ids])
    assert func.attrs[ir_attrs.OP] == ir_attrs.OP_DEQUANTIZE_TAKE


@pytest.mark.parametrize("layout", [None, DENSE_LAYOUTS["dense16"]])
def test_dense_weights_are_read_in_their_layout(layout: DenseLayout | None) -> None:
    rng = np.random.default_rng(3)
    x, matrix = (
        rng.standard_normal((3, 8)).astype(np.float32),
        rng.integers(-4, 5, (21, 8)).astype(np.float16),
    )
    packed = matrix if layout is None else layout.pack(matrix)[0]
    found = run(
        reference.dense_matmul(DenseSpec(8, 21, "float16", "float32"), layout),
        [x, packed],
        (3, 21),
        "float32",
    )
    np.testing.assert_allclose(found, x.astype(np.float64) @ matrix.T.astype(np.float64), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dense_take_is_exact(dtype: str) -> None:
    matrix = np.random.default_rng(4).standard_normal((21, 8)).astype(np.float16)
    layout, ids = DENSE_LAYOUTS["dense16"], np.array([20, 0, 16, 16], np.int32)
    func = reference.dense_take(DenseSpec(8, 21, "float16", dtype), layout)
    np.testing.assert_array_equal(
        run(func, [layout.pack(matrix)[0], ids], (4, 8), dtype), matrix[ids].astype(dtype)
    )
    assert func.attrs[ir_attrs.OP] == ir_attrs.OP_DENSE_TAKE


def test_names_are_left_to_the_module() -> None:
    """A module holds many of these: none may claim a symbol of its own."""
    row = LAYOUTS["row"]
    for func in (
        reference.dequantize(SPEC, row),
        reference.dequantize_matmul(SPEC, row),
        reference.dequantize_take(SPEC, row),
        reference.dense_matmul(DenseSpec(8, 8, "float16", "float32")),
    ):
        assert "global_symbol" not in func.attrs
