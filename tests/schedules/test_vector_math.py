"""Vector math against float64, over the whole range and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm.schedules import vector_math

LANES = 16
Array = np.ndarray[Any, Any]


def _run(function: Callable[[Any], Any], x: Array, lanes: int = LANES, outputs: int = 1) -> Array:
    """Evaluate an expression builder on x, ``lanes`` numbers at a time; [outputs, x.size]."""
    assert x.size % lanes == 0
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        source = T.match_buffer(T.arg("x", T.handle()), (x.size,), "float32")
        target = T.match_buffer(T.arg("y", T.handle()), (outputs, x.size), "float32")
        with T.serial(x.size // lanes) as i:
            place = T.ramp(i * lanes, 1, lanes) if lanes > 1 else i
            values = function(source[place])
            for row, value in enumerate(values if isinstance(values, tuple) else (values,)):
                T.buffer_store(target, value, [row, place])
    compiled = tvm.compile(tvm.IRModule({"main": builder.get()}), "llvm")
    y = tvm.runtime.tensor(np.zeros((outputs, x.size), "float32"))
    compiled["main"](tvm.runtime.tensor(x), y)
    return y.numpy()


def _grid(low: float, high: float, count: int = 1 << 16) -> Array:
    return np.linspace(low, high, count, dtype=np.float32)


@pytest.mark.parametrize("lanes", [1, 8, 16])
def test_exp2_is_within_2e_7(lanes: int) -> None:
    """Relative error over the normal range, for every width of vector."""
    x = _grid(-125.9, 127.4)
    expected = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(_run(vector_math.exp2, x, lanes)[0] / expected - 1)) < 2e-7


def test_exp_is_within_2e_7() -> None:
    """Relative error over the normal range."""
    x = _grid(-87.2, 88.3)
    expected = np.exp(x.astype(np.float64))
    assert np.max(np.abs(_run(vector_math.exp, x)[0] / expected - 1)) < 2e-7


@pytest.mark.parametrize("function", [vector_math.exp, vector_math.exp2, vector_math.silu, vector_math.gelu])
def test_named_and_nested_values_are_the_same(function: Callable[..., Any]) -> None:
    """Statement by statement or as one expression: bit for bit equal."""
    x = _grid(-20, 20, 1 << 10)
    named = _run(lambda v: function(v, T.bind), x)
    np.testing.assert_array_equal(named, _run(function, x))


@pytest.mark.parametrize("function", [vector_math.exp, vector_math.exp2])
def test_exponentials_at_the_edges(function: Callable[[Any], Any]) -> None:
    """Nothing below, infinity above, NaN kept, and exactly 1 at 0."""
    x = np.array([-np.inf, -3e38, -1000, -128, 0, -0.0, 1000, 3e38, np.inf, np.nan] + [0] * 6, np.float32)
    expected = [0, 0, 0, 0, 1, 1, np.inf, np.inf, np.inf, np.nan]
    np.testing.assert_array_equal(_run(function, x)[0][:10], expected)


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (vector_math.sigmoid, lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0),
        (vector_math.silu, lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0),
        (vector_math.tanh, math.tanh),
        (vector_math.erf, math.erf),
        (vector_math.gelu, lambda x: 0.5 * x * (1 + math.erf(x * math.sqrt(0.5)))),
        (
            vector_math.gelu_tanh,
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_activations_are_within_5e_7(function: Callable[[Any], Any], exact: Callable[[float], float]) -> None:
    """Absolute error, relative to the argument where that is above 1."""
    x = np.concatenate([_grid(-12, 12, 1 << 14), _grid(-300, 300, 1 << 10)])
    expected = np.array([exact(float(v)) for v in x])
    error = np.abs(_run(function, x)[0] - expected) / np.maximum(1, np.abs(x))
    assert np.max(error) < 5e-7


@pytest.mark.parametrize("function", [vector_math.silu, vector_math.gelu, vector_math.gelu_tanh])
def test_activations_keep_nan_and_vanish_at_minus_infinity_scale(function: Callable[[Any], Any]) -> None:
    """A NaN must be seen by whoever looks for NaN; a huge negative number must give 0, not NaN."""
    y = _run(function, np.array([np.nan, -1e30, 1e30] + [0.0] * 13, np.float32))[0]
    assert np.isnan(y[0])
    assert y[1] == 0
    assert y[2] == np.float32(1e30)


@pytest.mark.parametrize("reach", [1.0, 100.0, 8192.0, 131072.0])
def test_sine_and_cosine_are_within_1e_7(reach: float) -> None:
    """Absolute error for angles up to the longest contexts."""
    x = np.concatenate([_grid(-reach, reach), np.arange(16, dtype=np.float32)])
    sine, cosine = _run(lambda v: vector_math.sin_cos(v, T.bind), x, outputs=2)
    assert np.max(np.abs(sine - np.sin(x.astype(np.float64)))) < 1e-7
    assert np.max(np.abs(cosine - np.cos(x.astype(np.float64)))) < 1e-7
