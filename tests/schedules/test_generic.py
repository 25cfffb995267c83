"""The generic schedule keeps what functions compute, for odd sizes and for one row and several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.relax import op

from awq_tvm.schedules.cpu.generic import schedule

Array = np.ndarray[Any, Any]
COLUMNS = (63, 64, 100)
ROWS = 17
EPSILON = 1e-5


def _norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# Name -> the operators on (x[n, columns], y[n, columns], ids[n], weight[columns], table[ROWS, columns]), and numpy's.
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Array]]] = {
    "rms_norm": (
        lambda x, y, ids, w, table: op.nn.rms_norm(x, w, axes=-1, epsilon=EPSILON),
        lambda x, y, ids, w, table: _norm(x, w),
    ),
    "sum_then_rms_norm": (
        lambda x, y, ids, w, table: op.nn.rms_norm(op.add(x, y), w, axes=-1, epsilon=EPSILON),
        lambda x, y, ids, w, table: _norm(x + y, w),
    ),
    "softmax": (lambda x, y, ids, w, table: op.nn.softmax(x), lambda x, y, ids, w, table: _softmax(x)),
    "take": (lambda x, y, ids, w, table: op.take(table, ids, axis=0), lambda x, y, ids, w, table: table[ids]),
    "take_then_add": (
        lambda x, y, ids, w, table: op.add(op.take(table, ids, axis=0), x),
        lambda x, y, ids, w, table: table[ids] + x,
    ),
    "add": (lambda x, y, ids, w, table: op.add(x, y), lambda x, y, ids, w, table: x + y),
    "silu_times": (
        lambda x, y, ids, w, table: op.multiply(op.nn.silu(x), y),
        lambda x, y, ids, w, table: x / (1 + np.exp(-x)) * y,
    ),
    "row_sum": (lambda x, y, ids, w, table: op.sum(x, axis=1), lambda x, y, ids, w, table: x.sum(1)),
    "concat": (
        lambda x, y, ids, w, table: op.concat([x, y], axis=1),
        lambda x, y, ids, w, table: np.concatenate([x, y], axis=1),
    ),
}


@pytest.fixture(scope="module")
def machine() -> Any:
    """Every case for every number of columns, fused by TVM, scheduled by us, in one program."""
    builder = relax.BlockBuilder()
    for name, (expression, _) in CASES.items():
        for columns in COLUMNS:
            _add_function(builder, f"{name}_{columns}", expression, columns)
    mod = builder.get()
    for step in ("LegalizeOps", "AnnotateTIROpPattern", "FuseOps", "FuseTIR", "DeadCodeElimination"):
        mod = getattr(relax.transform, step)()(mod)
    scheduled = mod.clone()
    changed = 0
    for variable, func in mod.functions_items():
        if isinstance(func, tirx.PrimFunc):
            scheduled[variable] = schedule(func)
            changed += not tvm_ffi.structural_equal(scheduled[variable], func)
    assert changed >= len(CASES)
    return relax.VirtualMachine(tvm.compile(scheduled, "llvm"), tvm.cpu())


def _add_function(builder: Any, name: str, expression: Callable[..., Any], columns: int) -> None:
    n = tirx.Var("n", "int64")
    parameters = [
        relax.Var("x", relax.TensorType((n, columns), "float32")),
        relax.Var("y", relax.TensorType((n, columns), "float32")),
        relax.Var("ids", relax.TensorType((n,), "int32")),
        relax.Var("weight", relax.TensorType((columns,), "float32")),
        relax.Var("table", relax.TensorType((ROWS, columns), "float32")),
    ]
    with builder.function(name, parameters):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(expression(*parameters)))
        builder.emit_func_output(result)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("name", CASES)
def test_keeps_the_numbers(machine: Any, name: str, columns: int, rows: int) -> None:
    rng = np.random.default_rng(columns + rows)
    inputs = [
        rng.standard_normal((rows, columns), np.float32),
        rng.standard_normal((rows, columns), np.float32),
        rng.integers(0, ROWS, rows, dtype=np.int32),
        rng.standard_normal(columns, np.float32),
        rng.standard_normal((ROWS, columns), np.float32),
    ]
    found = machine[f"{name}_{columns}"](*map(tvm.runtime.tensor, inputs)).numpy()
    wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in inputs]
    expected = CASES[name][1](*wide)
    assert found.shape == expected.shape
    # Sums of at most 100 numbers of a few units each, and an exponential, in float32.
    np.testing.assert_allclose(found, expected, rtol=5e-6, atol=2e-5)


def test_one_row_stays_on_one_thread() -> None:
    x = te.placeholder((te.var("n", "int64"), 64), "float32", "x")
    func = te.create_prim_func([x, te.compute(x.shape, lambda i, j: x[i, j] * 2, "y")])
    script = schedule(func).script()
    assert "if n == T.int64(1)" in script or "n == 1" in script
    serial, parallel = script.split("else:")
    assert "T.parallel" not in serial
    assert "T.parallel" in parallel


def test_what_cannot_be_scheduled_is_left_as_it_is() -> None:
    """A function of no rows at all has no loop to share out."""
    x = te.placeholder((), "float32", "x")
    func = te.create_prim_func([x, te.compute((), lambda: x() * 2, "y")])
    compiled = tvm.compile(schedule(func).with_attr("global_symbol", "main"), "llvm")
    out = tvm.runtime.tensor(np.zeros((), np.float32))
    compiled["main"](tvm.runtime.tensor(np.array(3, np.float32)), out)
    assert out.numpy() == 6
