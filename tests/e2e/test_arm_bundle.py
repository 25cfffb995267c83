"""Whole bundles for ARM, run by the cross-built runner under qemu, beside this machine's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.compile.driver import compile_model
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny

pytestmark = native.needs_cmake
PROMPTS = tuple(tiny.tokens(count, seed=count) for count in (1, 9, 40))
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.installed_aarch64_runner(tmp_path_factory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.quantized_llama(tmp_path_factory).checkpoint


def compiled(checkpoint: Path, folder: Path, target: str, activations: str) -> Path:
    bundle = folder / f"{target}-{activations}"
    compile_model(
        str(checkpoint),
        bundle,
        target=target,
        activations=activations,
        vocabulary_bits=16,
        kv_cache="float32",
    )
    return bundle


@pytest.mark.parametrize(
    ("target", "activations", "cpu"),
    [
        pytest.param("raspberry-pi-4", "float", "cortex-a72", id="no dot product"),
        pytest.param("armv8.2-dotprod", "int8", "max", id="dot product", marks=pytest.mark.slow),
        pytest.param("graviton-3", "int8", "max", id="matrix instructions", marks=pytest.mark.slow),
        pytest.param("graviton-3", "float", "max", id="SVE", marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_this_machine(
    runner: Path, checkpoint: Path, tmp_path: Path, target: str, activations: str, cpu: str
) -> None:
    bundle = compiled(checkpoint, tmp_path, target, activations)
    with Engine.load(compiled(checkpoint, tmp_path, "cpu", activations)) as engine:
        options = SamplingOptions(max_tokens=NEW_TOKENS)
        expected = [list(engine.generate_tokens(prompt, options).token_ids) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        words = " ".join(map(str, prompt))
        found = native.answer(runner, "--ids", "--max-tokens", NEW_TOKENS, bundle, words, cpu=cpu)
        assert found["token_ids"] == tokens


@pytest.mark.slow
def test_a_cpu_without_the_features_is_refused(runner: Path, checkpoint: Path, tmp_path: Path) -> None:
    bundle = compiled(checkpoint, tmp_path, "graviton-3", "int8")
    assert native.run(runner, "--ids", "--max-tokens", 1, bundle, "1", cpu="max").returncode == 0
    done = native.run(runner, "--ids", "--max-tokens", 1, bundle, "1", cpu="cortex-a72")
    assert done.returncode == 5
    assert "a CPU without bf16, dotprod" in done.stderr
