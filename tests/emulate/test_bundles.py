"""Whole bundles for GPUs on the CPU: the library's host code, the virtual machine, every kernel in the emulator."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.bundle.manifest import FileInfo, Manifest, parse_manifest
from awq_tvm.targets import Target, resolve, with_host_here
from tests.cli.conftest import awq_tvm
from tests.support import tiny_decoder as tiny
from tests.support.child import output_of
from tests.support.emulated_bundle import TOLERANCE, Emulated, Part, run_in_emulator

needs_this_machine = [
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="kernels run on the CPU through g++, not installed"
    ),
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="built for x86-64 Linux"
    ),
]

pytestmark = needs_this_machine

# A prefill by tiles, one by small tiles, tokens one by one.
PARTS: list[Part] = [(70, "all"), (20, "all")]
GREEDY = 8

TIE = 1e-3
"""PyTorch's logits nearer than this part of the largest are a tie, which a tenth of that bound decides."""


def target_of(kind: str) -> Target:
    """The target, its host part for this machine; of so few SMs that small linears fill it as large ones do a GPU."""
    gpus = {"cuda": "nvidia-a100", "h100": "nvidia-h100"}
    if kind in gpus:
        return dataclasses.replace(resolve(gpus[kind]), num_sms=1)
    return with_host_here(resolve("metal"))


def expect_pytorchs(found: Emulated, model: Any) -> None:
    """Logits are PyTorch's, and the greedy tokens those that it would choose, but for ties."""
    expected = tiny.torch_logits(model, found.ids)
    assert tiny.relative_error(found.logits, expected[found.rows]) < TOLERANCE
    choices = expected[-GREEDY - 1 : -1]
    short = choices.max(1) - choices[range(GREEDY), found.ids[-GREEDY:]]
    assert short.max() < TIE * np.abs(expected).max()


def seal(bundle: Path, change: Callable[[Manifest], dict[str, Any]]) -> None:
    """Change a bundle's manifest, as who made the bundle could have."""
    path = bundle / "manifest.json"
    manifest = parse_manifest(path.read_bytes(), path)
    path.write_bytes(manifest.model_copy(update=change(manifest)).to_bytes())


def said_by(module: str, bundle: Path) -> dict[str, Any]:
    """The JSON that a module prints of a bundle, in a process of its own."""
    found: dict[str, Any] = json.loads(output_of(module, bundle).splitlines()[-1])
    return found


@pytest.fixture(scope="module", params=["cuda", "metal"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny.Compiled:
    if request.param == "cuda" and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    # K of whole blocks, so that tensor cores serve every linear; norms, biases and a head of its own.
    model = tiny.make_model("llama", intermediate_size=128, attention_bias=True)
    folder = tmp_path_factory.mktemp(request.param)
    return tiny.compile_quantized(model, folder, target=target_of(request.param), kv_cache="auto")


def test_logits_and_greedy_tokens_are_those_of_pytorch(compiled: tiny.Compiled, tmp_path: Path) -> None:
    kernels = {kernel["reason"] for kernel in compiled.report.kernels if kernel["source"] != "fallback"}
    assert kernels in ({"cuda_tensor_core_matmul"}, {"metal_simdgroup_matmul"})
    found = run_in_emulator(compiled.bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)
    expect_pytorchs(found, compiled.model)
    # The linear of gate and up has done it.
    assert "gated_kernel" not in found.launches


def compile_without_nvcc(model: Any, folder: Path, kind: str, **options: Any) -> tiny.Compiled:
    """Of kernels for CUDA the emulator reads the source, and nvcc takes half a minute for them."""
    return tiny.compile_quantized(
        model, folder, target=target_of(kind), kv_cache="auto", source_only=kind != "metal", **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_norms_of_heads_are_those_of_pytorch(kind: str, tmp_path: Path) -> None:
    model = tiny.make_model("qwen3", intermediate_size=128)
    made = compile_without_nvcc(model, tmp_path, kind)
    found = run_in_emulator(made.bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)
    expected = tiny.torch_logits(model, found.ids)
    assert tiny.relative_error(found.logits, expected[found.rows]) < TOLERANCE
    assert found.launches["norm_heads_kernel"] == tiny.LAYERS * (len(PARTS) + GREEDY)


@pytest.mark.slow
def test_bfloat16_is_as_near_to_pytorch_as_its_precision(tmp_path: Path) -> None:
    """Its unit roundoff is eight times that of float16; near that, another token may have the highest logit."""
    model = tiny.make_model("llama", intermediate_size=128, attention_bias=True)
    made = compile_without_nvcc(model, tmp_path, "cuda", dtype="bfloat16")
    found = run_in_emulator(made.bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)
    expected = tiny.torch_logits(model, found.ids)
    assert tiny.relative_error(found.logits, expected[found.rows]) < 8 * TOLERANCE
    chosen = expected[-GREEDY - 1 : -1]
    left = chosen.max(1) - chosen[range(GREEDY), found.ids[-GREEDY:]]
    assert (left <= 2 * 8 * TOLERANCE * np.abs(expected).max()).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "metal"])
def test_a_window_shorter_than_the_context(kind: str, tmp_path: Path) -> None:
    """Of a prompt, of a second part of it, and of tokens one by one."""
    model = tiny.make_model("mistral", intermediate_size=128, sliding_window=24)
    made = compile_without_nvcc(model, tmp_path, kind, context_length=tiny.CONTEXT)
    found = run_in_emulator(made.bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)
    expect_pytorchs(found, model)


def test_reshapes_are_views_and_have_no_kernels(compiled: tiny.Compiled) -> None:
    (source,) = compiled.bundle.glob("kernels.[cm][ue]*")
    assert "rms_norm_kernel(" in source.read_text()
    assert not re.search(r"reshape\d*_kernel\(", source.read_text())


def test_verify_emulates(compiled: tiny.Compiled) -> None:
    done = awq_tvm("verify", compiled.bundle, "--emulate", "--prompt", "w1 w2 w3", "--tokens", 3, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prompt_tokens"] == 3
    expected = [1, 2, 3]
    for _ in range(3):
        expected.append(int(tiny.torch_logits(compiled.model, expected)[-1].argmax()))
    assert found["token_ids"] == expected[3:]
    matmuls = {name: count for name, count in found["launches"].items() if "dequantize_matmul" in name}
    # Three forward passes of four linears a layer; the head is not quantized.
    assert sum(matmuls.values()) == 3 * 4 * tiny.LAYERS
    # Each token is drawn from what the device found.
    assert [count for name, count in found["launches"].items() if "candidates" in name] == [3, 3]
    plain = awq_tvm("verify", compiled.bundle, "--emulate", "--tokens", 1)
    assert "nothing found" in plain.stdout


def test_graphs_compute_what_launches_do_as_long_as_nothing_moves(compiled: tiny.Compiled) -> None:
    if not compiled.report.target.startswith("nvidia"):
        pytest.skip("only CUDA has graphs")
    found = said_by("tests.support.emulated_graphs", compiled.bundle)
    # One before the first attention, one behind each; all but the first token launch what that captured.
    assert found["launched"] == (tiny.LAYERS + 1) * (found["steps"] - 1)
    assert found["as_without"]
    assert not found["moved"]


def test_tokens_drawn_from_candidates_are_those_drawn_from_all_logits(compiled: tiny.Compiled) -> None:
    found = said_by("tests.support.emulated_sampling", compiled.bundle)
    assert all(len(tokens) == 6 for tokens in found["from_all"])
    assert found["from_candidates"] == found["from_all"]
    assert found["together"] == found["from_all"]
    # Greedy, and k of fewer than there are; all logits where the options ask for all.
    assert found["reads"][:2] == [0, 0]
    assert found["reads"][-1] == 6
    first, second = (found["launches"][f"candidates_kernels_kernel{end}"] for end in ("", "_1"))
    assert first == second > 5 * 6


def planted(compiled: tiny.Compiled, bundle: Path, pattern: str, instead: str) -> dict[str, Any]:
    """The error of the same bundle with its kernels changed and their hash made anew."""
    shutil.copytree(compiled.bundle, bundle)
    (path,) = bundle.glob("kernels.[cm][ue]*")
    source = path.read_text()
    assert re.search(pattern, source)
    path.write_text(re.sub(pattern, instead, source))
    raw = path.read_bytes()
    files = {path.name: FileInfo(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())}
    seal(bundle, lambda manifest: {"files": {**manifest.files, **files}})
    done = awq_tvm("verify", bundle, "--emulate", "--tokens", 1, "--json")
    assert done.returncode == 6, done.stderr
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    return error


def test_a_missing_barrier_in_a_bundle_is_found(compiled: tiny.Compiled, tmp_path: Path) -> None:
    barrier = r"__syncthreads\(\);|threadgroup_barrier\(mem_flags::mem_threadgroup\);"
    error = planted(compiled, tmp_path / "bundle", barrier, "")
    assert "what real hardware punishes" in error["what"]
    assert "block (0, 0, 0), thread (" in error["why"]


# What looks up the three tokens of the prompt, [3, 64] float16: 384 bytes in a storage that is larger; another takes
# one token.
BODY_OF_TAKE = r"(void (?:__launch_bounds__\(\d+\) )?take1?_kernel\([^;{]*\{)"


def test_a_tensor_ends_where_it_ends_and_not_with_its_storage(
    compiled: tiny.Compiled, tmp_path: Path
) -> None:
    error = planted(compiled, tmp_path / "bundle", BODY_OF_TAKE, r"\1 T_take_ptr[200] = (half)0.0f;")
    assert "what real hardware punishes" in error["what"]
    assert re.search(r"kernel take1?_kernel, block \(0, 0, 0\)", error["why"])
    assert "write of 2 bytes, 400 bytes into a tensor of 384: out of bounds" in error["why"]


def test_a_kernel_that_ends_the_process_is_named(compiled: tiny.Compiled, tmp_path: Path) -> None:
    crash = r"\1 volatile int zero = 0; T_take_ptr[0] = (half)(float)(100 / zero);"
    error = planted(compiled, tmp_path / "bundle", BODY_OF_TAKE, crash)
    assert "ended early" in error["what"]
    assert re.search(r"SIGFPE: kernel take1?_kernel, block \(0, 0, 0\), thread \(0, 0, 0\)", error["why"])


def test_a_bundle_without_its_sources_is_refused(compiled: tiny.Compiled, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled.bundle, bundle)
    (path,) = bundle.glob("kernels.[cm][ue]*")
    path.unlink()
    seal(bundle, lambda m: {"files": {name: info for name, info in m.files.items() if name != path.name}})
    done = awq_tvm("verify", bundle, "--emulate", "--json")
    assert done.returncode == 6
    assert path.name in json.loads(done.stdout)["error"]["why"]


def test_a_bundle_for_a_cpu_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = awq_tvm("verify", tiny.quantized_llama(tmp_path_factory).bundle, "--emulate", "--json")
    assert done.returncode == 2
    assert "a CPU" in json.loads(done.stdout)["error"]["why"]


def test_a_host_part_for_another_machine_is_refused(compiled: tiny.Compiled, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled.bundle, bundle)
    seal(bundle, lambda m: {"target": m.target.model_copy(update={"triple": "arm64-apple-macos"})})
    done = awq_tvm("verify", bundle, "--emulate", "--json")
    assert done.returncode == 5
    error = json.loads(done.stdout)["error"]
    assert "aarch64 darwin" in error["why"]
    assert " --host-here -o bundle.new`" in error["fix"]
