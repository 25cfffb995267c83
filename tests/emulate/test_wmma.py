"""Matrices of CUDA's nvcuda::wmma, which TVM's own matmuls use, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from awq_tvm.errors import BundleError

FRAME = """#include <cuda.h>
#include <cuda_fp16.h>
#include <mma.h>
extern "C" __global__ void __launch_bounds__(32) k(half* a, half* w, {sums}* y) {{
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, {m}, {n}, 16, half, nvcuda::wmma::row_major> left;
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, {m}, {n}, 16, half, nvcuda::wmma::col_major> right;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, {m}, {n}, 16, {sums}> sums[1];
  nvcuda::wmma::fill_fragment(sums[0], 1.0f);
{body}
  nvcuda::wmma::store_matrix_sync(y, sums[0], {n}, nvcuda::wmma::mem_row_major);
}}
"""
BODY = """  for (int k = 0; k < 2; ++k) {
    nvcuda::wmma::load_matrix_sync(left, a + 16 * k, 32);
    nvcuda::wmma::load_matrix_sync(right, w + 16 * k, 32);
    nvcuda::wmma::mma_sync(sums[0], left, right, sums[0]);
  }
"""


def aligned(array: np.ndarray) -> np.ndarray:
    """The same at a multiple of 32 bytes, which CUDA asks for."""
    room = np.zeros(array.nbytes + 32, np.uint8)
    place = -room.ctypes.data % 32
    copy = room[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def product(emulated, body: str, m: int, n: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """What is found, and a @ w.T + 1."""
    random = np.random.default_rng(0)
    a, w = (aligned(random.uniform(-2, 2, (rows, 32)).astype(np.float16)) for rows in (m, n))
    y = aligned(np.zeros((m, n), dtype))
    source = FRAME.format(m=m, n=n, sums="half" if dtype is np.float16 else "float", body=body)
    emulated(source).launch("k", [a, w, y], (1, 1, 1), (32, 1, 1))
    return y, a.astype(np.float32) @ w.T.astype(np.float32) + 1


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [(16, 16, np.float32), (16, 16, np.float16), (32, 8, np.float32), (8, 32, np.float32)],
)
def test_a_warp_multiplies_matrices(m: int, n: int, dtype: type, emulated) -> None:
    found, expected = product(emulated, BODY, m, n, dtype)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if dtype is np.float32 else 2e-2)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("w + 16 * k, 32", "w + 16 * k, 20", "lines are 20 elements apart"),
        ("w + 16 * k, 32", "w + 32 * (threadIdx.x & 1), 32", "different matrices"),
        ("w + 16 * k, 32", "w + 8 * k, 32", "no multiple of 32: misaligned"),
        ("a + 16 * k, 32", "a + 32 * k, 32", "out of bounds"),
    ],
)
def test_what_cuda_leaves_undefined_is_an_error(right: str, wrong: str, message: str, emulated) -> None:
    assert right in BODY
    with pytest.raises(BundleError) as error:
        product(emulated, BODY.replace(right, wrong), 16, 16, np.float32)
    assert message in str(error.value.why)
