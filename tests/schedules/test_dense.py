"""The dense CPU kernels against float64."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tvm

from awq_tvm import ir_attrs
from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu.dense import DENSE_LAYOUTS, build_dense_matmul, default_config
from awq_tvm.targets import resolve
from tests.support import cpu_kernels

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
LAYOUT = DENSE_LAYOUTS["dense16"]


@pytest.mark.parametrize("target_name", cpu_kernels.TARGETS)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "has_bias"), [(16, 33, False), (40, 64, True), (100, 576, False)])
def test_dense_matches_float64(target_name: str, weight_dtype: str, n: int, k: int, has_bias: bool) -> None:
    target = cpu_kernels.target_or_none(target_name)
    if target is None:
        pytest.skip(f"this machine cannot run {target_name} code")
    func = build_dense_matmul(k, n, weight_dtype, "float32", has_bias, default_config(target))
    module = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    kernel = tvm.compile(module, target=tvm.target.Target(target.tvm_target))["kernel"]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((n, k)).astype(DTYPES[weight_dtype])
    bias = rng.standard_normal(n).astype(np.float32)
    (packed,) = LAYOUT.pack(weight)
    (wanted,) = LAYOUT.arrays(k, n, weight_dtype)
    assert (packed.shape, str(packed.dtype)) == (wanted.shape, wanted.dtype)
    for rows in (1, 2, 7, 16, 17, 33):
        x = rng.standard_normal((rows, k)).astype(np.float32)
        y = tvm.runtime.tensor(np.full((rows, n), np.nan, np.float32))
        extra = [tvm.runtime.tensor(bias)] if has_bias else []
        kernel(tvm.runtime.tensor(x), tvm.runtime.tensor(packed), *extra, y)
        exact = weight.astype(np.float64)
        error = np.abs(y.numpy() - (x @ exact.T + (bias if has_bias else 0)))
        # As for the quantized kernels: float32 sums of K products.
        assert (error / (np.abs(x) @ np.abs(exact).T + np.abs(bias))).max() < 6e-7


def test_element_is_where_pack_put_it() -> None:
    weight = np.arange(20 * 6, dtype=np.float32).reshape(20, 6)
    (packed,) = LAYOUT.pack(weight)

    class Indexed:
        def __getitem__(self, index: tuple[int, ...]) -> float:
            return float(packed[index])

    for n in (0, 15, 16, 19):
        assert [LAYOUT.element(Indexed(), n, k) for k in range(6)] == weight[n].tolist()
    assert not packed[1, :, 4:].any()


def test_the_dense_kernel_says_what_it_is() -> None:
    func = build_dense_matmul(64, 32, "float16", "float32", True, default_config(resolve("arm")))
    assert func.attrs[ir_attrs.OP] == ir_attrs.OP_DENSE_MATMUL
    assert func.attrs[ir_attrs.LAYOUT] == "dense16"
    assert func.attrs[ir_attrs.IS_SCHEDULED]


@pytest.mark.parametrize(("weight_dtype", "dtype"), [("int8", "float32"), ("float16", "float16")])
def test_dense_refuses_other_dtypes(weight_dtype: str, dtype: str) -> None:
    with pytest.raises(UnsupportedError, match="dense CPU kernel"):
        build_dense_matmul(64, 32, weight_dtype, dtype, False, default_config(resolve("x86-64-v3")))


def test_dense_config_refuses_too_many_sums() -> None:
    with pytest.raises(UnsupportedError):
        replace(default_config(resolve("x86-64-v3")), tile_rows=8)
