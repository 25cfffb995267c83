"""Launches that may begin early, in whole libraries and bundles: which do, in graphs too, and the same logits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import tvm
from tvm import relax
from tvm.script.ir_builder import tirx as T

from awq_tvm import ir_attrs
from awq_tvm.compile.driver import compile_model
from awq_tvm.compile.toolchain import build_library
from awq_tvm.passes.overlap_launches import OverlapLaunches
from awq_tvm.runtime.executor import OVERLAP_VARIABLE
from awq_tvm.schedules.attention.parameters import build, size, tensor
from awq_tvm.targets import Target, resolve
from tests.emulate.test_bundles import GREEDY, PARTS, needs_this_machine
from tests.support import tiny_decoder as tiny
from tests.support.child import output_of
from tests.support.emulated_bundle import TOLERANCE, Emulated, run_in_emulator

pytestmark = needs_this_machine


HOPPER = resolve("nvidia-h100")


def doubled(name: str) -> tvm.tirx.PrimFunc:
    def emit() -> None:
        m = size("m", "int64")
        x, y = tensor("x", (m,)), tensor("y", (m,))
        with T.launch_thread("blockIdx.x", m) as i, T.launch_thread("threadIdx.x", 1):
            T.buffer_store(y, x[i] + x[i], [i])

    return build(name, emit, overlaps=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """``main_in_graphs``: two kernels in a graph, of which either may begin early; and their source."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3,), "float32"))
    with builder.function("main", [x], attrs={ir_attrs.WORKSPACE: "main_workspace"}):
        found = x
        for name in ("first", "second"):
            func = builder.add_func(doubled(name), name)
            found = builder.emit(relax.call_tir(func, (found,), x.ty))
        builder.emit_func_output(found)
    mod = OverlapLaunches(HOPPER).transform_module(builder.finalize(), None)
    folder = tmp_path_factory.mktemp("library")
    built = build_library(mod, HOPPER, folder, source_only=True)
    return built.path, (folder / "kernels.cu").read_text()


def said(library: Path, source: str, folder: Path) -> str:
    path = folder / "kernels.cu"
    path.write_text(source)
    return output_of("tests.support.emulated_main", library, path, 3)


CALL = "  tvm_builtin_ptx_griddepcontrol_wait();"
FOUR = "[4.0, 4.0, 4.0]\n"


def planted(source: str, kernel: str, instead: str) -> str:
    """The source with the wait of one kernel replaced."""
    head, body = source.rsplit(f"{kernel}(float*", 1)
    assert CALL in body
    return f"{head}{kernel}(float*{body.replace(CALL, instead, 1)}"


def test_a_library_says_which_kernels_may_begin_early(library, tmp_path, monkeypatch) -> None:
    path, source = library
    assert said(path, source, tmp_path) == f"{FOUR}{FOUR}4\n"
    monkeypatch.setenv(OVERLAP_VARIABLE, "0")
    assert said(path, source, tmp_path) == f"{FOUR}{FOUR}0\n"
    # A wait that is missing does no harm then.
    assert said(path, planted(source, "second_kernel", ""), tmp_path) == f"{FOUR}{FOUR}0\n"


def test_a_wait_that_a_kernel_of_a_graph_lacks_is_found(library, tmp_path) -> None:
    path, source = library
    error = said(path, planted(source, "second_kernel", ""), tmp_path)
    assert "kernel second_kernel" in error
    assert (
        "read of 4 bytes before griddepcontrol.wait: kernel first_kernel, launched before, writes them"
        in error
    )


def test_what_a_graph_does_early_when_it_is_launched_again_is_found(library, tmp_path) -> None:
    """Its first kernel reads early what nobody has written when the graph is recorded, and its second later on."""
    path, source = library
    early = "  volatile float early = y_ptr[blockIdx.x];" + CALL
    found = said(path, planted(source, "first_kernel", early), tmp_path)
    assert found.startswith(FOUR)
    assert found.count(FOUR) == 1
    assert "kernel first_kernel" in found
    assert "kernel first_kernel, launched before, writes them and may still run" in found


def kernels_that_wait(source: str) -> set[str]:
    parts = re.split(
        r'^extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(', source, flags=re.M
    )
    return {name for name, body in zip(parts[1::2], parts[2::2], strict=True) if CALL in body}


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "sms"), [("llama", 1), ("qwen3", 132)])
def test_logits_are_those_of_launches_one_after_another(
    model_type: str, sms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: of the same bundle with the launches in turn, and of one whose kernels know nothing of it.

    One SM is so few that small linears fill it as large ones do a GPU.
    """
    model = tiny.make_model(model_type, intermediate_size=128)
    target = dataclasses.replace(HOPPER, num_sms=sms)
    # The emulator reads the source, and nvcc takes half a minute for it.
    made = tiny.compile_quantized(model, tmp_path, target=target, kv_cache="auto", source_only=True)

    def run(bundle: Path) -> Emulated:
        return run_in_emulator(bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)

    found = run(made.bundle)
    expected = tiny.torch_logits(model, found.ids)
    assert tiny.relative_error(found.logits, expected[found.rows]) < TOLERANCE
    early = kernels_that_wait((made.bundle / "kernels.cu").read_text())
    assert found.overlapped == sum(found.launches[name] for name in early & found.launches.keys())
    as_ever = {
        re.sub(r"\d+_", "_", name) for name in found.launches.keys() - early if "dequantize" not in name
    }
    # What TVM makes: the lookup of tokens, the cast of logits and an unquantized head; and what is for prompts.
    assert as_ever == {
        f"{name}_kernel"
        for name in (
            "attention_merge",
            "attention_prefill_paged",
            "attention_prefill_ragged",
            "cast",
            "dense_matmul",
            "take",
        )
    }
    monkeypatch.setenv(OVERLAP_VARIABLE, "0")
    in_turn = run(made.bundle)
    assert (in_turn.overlapped, in_turn.launches) == (0, found.launches)
    monkeypatch.delenv(OVERLAP_VARIABLE)
    monkeypatch.setattr(Target, "overlaps_launches", False)
    options = {"activations": "float", "vocabulary_bits": 16, "kv_cache": "auto"}
    compile_model(str(made.checkpoint), tmp_path / "before", target=target, source_only=True, **options)
    before = run(tmp_path / "before")
    assert before.overlapped == 0
    for other in (in_turn, before):
        assert other.ids == found.ids
        assert (other.logits == found.logits).all()
