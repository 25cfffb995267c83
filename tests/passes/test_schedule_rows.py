from __future__ import annotations

from typing import Any, TypeVar

import pytest
import tvm
from tvm import relax, tirx
from tvm.script import relax as R

from awq_tvm import ir_attrs
from awq_tvm.passes.schedule_rows import ScheduleRows
from awq_tvm.targets import resolve

n, m = TypeVar("n"), TypeVar("m")


def calls(mod: tvm.IRModule, name: str = "forward") -> list[str]:
    """What a function calls, in order."""
    found: list[str] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call):
            called = expr.args[0] if expr.op.name == "relax.call_tir" else expr.op
            found.append(called.name_hint if isinstance(called, tvm.ir.GlobalVar) else called.name)

    relax.analysis.post_order_visit(mod[name].body, visit)
    return found


def scheduled(func: Any, **more: Any) -> tvm.IRModule:
    functions = {"forward": func, **more}
    mod = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    return ScheduleRows(resolve("nvidia-a100"))(mod.with_attr(ir_attrs.METADATA, "{}"))


@R.function
def decoder(
    x: R.Tensor((n, 64), "float16"),
    positions: R.Tensor((m,), "int32"),
    gate_up: R.Tensor((n, 128), "float16"),
    weight: R.Tensor((64,), "float16"),
):
    with R.dataflow():
        a = R.nn.rms_norm(x, weight, axes=[-1], epsilon=1e-5)
        left = R.strided_slice(gate_up, [1], [0], [64])
        right = R.strided_slice(gate_up, [1], [64], [128])
        gate = R.nn.silu(left)
        b = R.multiply(gate, right)
        rows = R.take(x, positions, axis=0, mode="clip")
        c = R.nn.rms_norm(rows, weight, axes=[-1], epsilon=1e-5)
        out = (a, b, c)
        R.output(out)
    return out


def test_norms_gates_and_picked_rows_are_kernels() -> None:
    mod = scheduled(decoder, decode=decoder)
    for name in ("forward", "decode"):
        assert calls(mod, name) == ["rms_norm", "gated", "rms_norm1"]
    assert ir_attrs.METADATA in mod.attrs
    for function in ("rms_norm", "gated", "rms_norm1"):
        assert mod[function].attrs[ir_attrs.IS_SCHEDULED]
    # Rows that are wanted come from the matrix itself.
    (picked,) = [
        binding.value
        for block in mod["forward"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.args[0].name_hint == "rms_norm1"
    ]
    assert [argument.name for argument in picked.args[1]] == ["x", "positions", "weight"]


@pytest.mark.parametrize(
    ("target", "inputs", "own"),
    [
        ("nvidia-h100", {"num_input": 3}, 1),  # the norm of x has a weight, that of y what is computed of it
        ("nvidia-h100", {ir_attrs.INPUTS: 3}, 1),
        ("nvidia-h100", {"num_input": 4}, 0),  # which is an input here
        ("nvidia-h100", {}, 0),
        ("nvidia-a100", {"num_input": 3}, 0),
    ],
)
def test_weights_alone_are_asked_for_before_other_launches_have_ended(
    target: str, inputs: dict[str, int], own: int
) -> None:
    rows, builder = tirx.Var("n", "int64"), relax.BlockBuilder()
    x, y = (relax.Var(name, relax.TensorType((rows, 64), "float16")) for name in "xy")
    other, weight = (relax.Var(name, relax.TensorType((64,), "float16")) for name in ("other", "weight"))
    with builder.function("forward", [x, y, other, weight]):
        with builder.dataflow():
            first = builder.emit(relax.op.nn.rms_norm(x, weight, axes=[-1], epsilon=1e-5))
            computed = builder.emit(relax.op.add(weight, other))
            second = builder.emit(relax.op.nn.rms_norm(y, computed, axes=[-1], epsilon=1e-5))
            result = builder.emit_output(relax.Tuple([first, second]))
        builder.emit_func_output(result)
    mod = builder.get()
    mod["forward"] = mod["forward"].with_attrs(inputs) if inputs else mod["forward"]
    mod = ScheduleRows(resolve(target))(mod)
    kernels = [mod[name] for name in calls(mod) if name.startswith("rms_norm")]
    assert len(kernels) == 2
    waits = [kernel for kernel in kernels if "griddepcontrol" in kernel.script()]
    assert len(waits) == own
    assert all(ir_attrs.OVERLAPS not in kernel.attrs for kernel in waits)
    assert sum(ir_attrs.OVERLAPS in kernel.attrs for kernel in kernels) == 2 - own


@R.function
def of_heads(x: R.Tensor((n, 4, 32), "float16"), weight: R.Tensor((32,), "float16")):
    with R.dataflow():
        y = R.nn.rms_norm(x, weight, axes=[2], epsilon=1e-5)
        R.output(y)
    return y


def test_heads_are_rows() -> None:
    mod = scheduled(of_heads)
    assert calls(mod) == ["relax.reshape", "rms_norm", "relax.reshape"]
    tvm.ir.assert_structural_equal(mod["forward"].ret_ty, of_heads.ret_ty, map_free_vars=True)


def of_q_and_k(
    ends: tuple[int, ...] = (64, 96, 128), eps: tuple[float, float] = (1e-5, 1e-5), other: bool = False
) -> relax.Function:
    """Four heads of q and two of k of 16 features normalised, between the columns of v that stay as they are."""
    rows, builder = tirx.Var("n", "int64"), relax.BlockBuilder()
    x, y = (relax.Var(name, relax.TensorType((rows, 128), "float16")) for name in "xy")
    weights = [relax.Var(name, relax.TensorType((16,), "float16")) for name in ("q_norm", "k_norm")]
    with builder.function("forward", [x, y, *weights]):
        with builder.dataflow():
            fields, begin = [], 0
            for number, end in enumerate(ends):
                source = y if other and number == 1 else x
                part = builder.emit(relax.op.strided_slice(source, [1], [begin], [end]))
                if number < 2:
                    heads = builder.emit(relax.op.reshape(part, (rows, (end - begin) // 16, 16)))
                    norm = relax.op.nn.rms_norm(heads, weights[number], axes=[-1], epsilon=eps[number])
                    part = builder.emit(relax.op.reshape(builder.emit(norm), (rows, end - begin)))
                fields.append(part)
                begin = end
            result = builder.emit_output(relax.op.concat(fields, axis=1))
        builder.emit_func_output(result)
    return builder.get()["forward"]


def test_norms_of_heads_are_one_call() -> None:
    mod = scheduled(of_q_and_k())
    assert calls(mod) == ["norm_heads"]
    assert {variable.name_hint for variable in mod.get_global_vars()} == {"forward", "norm_heads"}


@pytest.mark.parametrize(
    "changes", [{"ends": (64, 96, 112)}, {"eps": (1e-5, 1e-6)}, {"other": True}], ids=lambda c: next(iter(c))
)
def test_norms_of_heads_that_are_not_one_matrix(changes: dict[str, Any]) -> None:
    """Columns left out, norms that are not alike, another source: each norm is for itself."""
    found = calls(scheduled(of_q_and_k(**changes)))
    assert "norm_heads" not in found
    assert found.count("relax.concat") == 1
    assert sum(name.startswith("rms_norm") for name in found) == 2


@R.function
def read_twice(
    x: R.Tensor((n, 64), "float16"), positions: R.Tensor((m,), "int32"), weight: R.Tensor((64,), "float16")
):
    with R.dataflow():
        rows = R.take(x, positions, axis=0, mode="clip")
        y = R.nn.rms_norm(rows, weight, axes=[-1], epsilon=1e-5)
        out = (rows, y)
        R.output(out)
    return out


def test_rows_that_are_wanted_as_they_are_are_taken() -> None:
    assert calls(scheduled(read_twice)) == ["relax.take", "rms_norm"]


@R.function
def over_both_axes(x: R.Tensor((n, 64), "float16"), weight: R.Tensor((n, 64), "float16")):
    with R.dataflow():
        y = R.nn.rms_norm(x, weight, axes=[0, 1], epsilon=1e-5)
        R.output(y)
    return y


@R.function
def no_whole_vectors(x: R.Tensor((n, 60), "float16"), weight: R.Tensor((60,), "float16")):
    with R.dataflow():
        y = R.nn.rms_norm(x, weight, axes=[-1], epsilon=1e-5)
        R.output(y)
    return y


@R.function
def no_gate(x: R.Tensor((n, 128), "float16")):
    with R.dataflow():
        left = R.strided_slice(x, [1], [64], [128])
        right = R.strided_slice(x, [1], [0], [64])
        gate = R.nn.silu(left)
        y = R.multiply(gate, right)
        R.output(y)
    return y


@R.function
def narrow_gate(x: R.Tensor((n, 24), "float16")):
    with R.dataflow():
        left = R.strided_slice(x, [1], [0], [12])
        right = R.strided_slice(x, [1], [12], [24])
        gate = R.nn.silu(left)
        y = R.multiply(gate, right)
        R.output(y)
    return y


@pytest.mark.parametrize("func", [over_both_axes, no_whole_vectors, no_gate, narrow_gate])
def test_leaves_alone(func: Any) -> None:
    mod = scheduled(func)
    assert len(mod.functions) == 1
    assert all(name.startswith("relax.") for name in calls(mod))
