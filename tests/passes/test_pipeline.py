from __future__ import annotations

import ast
from pathlib import Path
from unittest import mock

import pytest
import tvm

from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.passes import pipeline
from awq_tvm.schedules.parameter_plan import DenseSource, QuantizedSource
from awq_tvm.targets import resolve

from .modules import X86, assert_in_step, exported, plan_of


@pytest.mark.parametrize("opt", pipeline.OPT_LEVELS)
@pytest.mark.parametrize("embedding", [False, True])
def test_the_plan_stays_in_step_with_the_parameters(opt: int, embedding: bool) -> None:
    mod = exported(8 if embedding else 4, embedding=embedding)
    everything = _read(mod)
    for name, step in pipeline.passes(X86, opt):
        if name == "bundle_weights":
            break
        with tvm.target.Target(X86.tvm_target_with_host):
            mod = step(mod)
        assert_in_step(mod)
        assert _read(mod) == everything, name


def _read(mod: tvm.IRModule) -> set[str]:
    """Every tensor and linear of the checkpoint that the plan reads."""
    found: set[str] = set()
    for source in plan_of(mod).values():
        assert isinstance(source, DenseSource | QuantizedSource)
        found |= set(source.tensors if isinstance(source, DenseSource) else source.modules)
    return found


def test_every_quantized_linear_is_fused_and_scheduled() -> None:
    found = pipeline.run(exported(), X86, 2)
    script = found.script()
    assert script.count('"awq.op": "dequantize_matmul"') == 4  # qkv, o, gate and up, down
    assert '"awq.op": "dequantize"' not in script
    names = [name for name, source in plan_of(found).items() if isinstance(source, QuantizedSource)]
    assert len(names) == 4 * 3


@pytest.mark.parametrize("opt", [-1, 4, 100])
def test_an_unknown_level_is_refused(opt: int) -> None:
    with pytest.raises(UsageError, match=f"no optimization level {opt}"):
        pipeline.passes(X86, opt)


def test_an_error_of_a_pass_keeps_its_class_and_its_parts() -> None:
    """TVM would make a RuntimeError of it."""
    mod = exported()
    linear = "model.layers.0.self_attn.q_proj"
    with (
        mock.patch.object(pipeline, "passes", return_value=[("verify_fusion", pipeline.VerifyFusion())]),
        pytest.raises(UnsupportedError) as caught,
    ):
        pipeline.run(mod, X86, 2)
    assert caught.value.where is not None
    assert linear in caught.value.where.split(", ")


def test_the_ir_after_every_pass_is_dumped(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    pipeline.run(exported(), X86, 2, debug_dump=tmp_path, on_pass=lambda *event: heard.append(event))
    names = [name for name, _ in pipeline.passes(X86, 2)]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"{i:02d}_{name}.py" for i, name in enumerate(["exported", *names])]
    assert heard == [(name, i, len(names)) for i, name in enumerate(names)]
    for path in tmp_path.iterdir():
        ast.parse(path.read_text(encoding="utf-8"))
    after = (tmp_path / files[names.index("combine_parallel_linears") + 1]).read_text(encoding="utf-8")
    assert after != (tmp_path / files[0]).read_text(encoding="utf-8")


def test_gpus_leave_the_rest_to_tvm() -> None:
    cpu_only = {"legalize_vector_math", "schedule_remaining"}
    assert cpu_only <= {name for name, _ in pipeline.passes(X86, 2)}
    assert not cpu_only & {name for name, _ in pipeline.passes(resolve("cuda"), 2)}
