"""Every kernel of whole bundles for CUDA, ours and TVM's: nvcc spills no register of any, on any architecture."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from awq_tvm.bundle.kernel_report import KernelUse, read_kernel_report
from awq_tvm.bundle.verify import read_manifest
from awq_tvm.compile.toolchain import Kernel
from awq_tvm.targets import resolve
from benchmarks.gpu.model_build import LLAMA_3_8B, build_model
from tests.support import tiny_decoder as tiny

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
    pytest.mark.slow,
]

# One layer of each: further ones have the same kernels.
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Llama-2-7B": {"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000},
    "Llama-3-8B": {},
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}


# What every model has beside its linears, by how the kernels' names begin.
EVERYWHERE = ("attention_decode", "attention_prefill", "candidates", "kv_cache_append", "rms_norm")


def assert_nothing_is_spilled(kernels: Iterable[Kernel | KernelUse], target: str) -> None:
    """Of all kernels on every architecture of a target."""
    found = list(kernels)
    names = {kernel.name for kernel in found}
    assert [start for start in EVERYWHERE if not any(name.startswith(start) for name in names)] == []
    everywhere = {(name, arch) for name in names for arch in resolve(target).cuda_archs}
    assert {(kernel.name, kernel.arch) for kernel in found} == everywhere
    # Where the compiler says nothing, it would be None.
    assert [one for one in found if one.spill_store_bytes != 0 or one.spill_load_bytes != 0] == []


@pytest.mark.parametrize("target", ["cuda", "nvidia-h100", "nvidia-b200"])
@pytest.mark.parametrize("model", SHAPES)
def test_nothing_is_spilled_in_a_model_of_known_shape(model: str, target: str, tmp_path: Path) -> None:
    config = {**LLAMA_3_8B, "num_hidden_layers": 1, **SHAPES[model]}
    group_size = 64 if model.startswith("SmolLM2") else 128
    kernels = build_model(tmp_path / "model", resolve(target), config, group_size)
    assert_nothing_is_spilled(kernels, target)


TINY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bfloat16": ("llama", {"attention_bias": True, "head_dim": 64}, {"dtype": "bfloat16"}),
    "a window": ("mistral", {"sliding_window": 24, "head_dim": 128}, {"context_length": tiny.CONTEXT}),
    "biases": ("qwen2", {"num_key_value_heads": 1}, {"embedding": True}),
    "no whole blocks of k": ("llama", {"hidden_size": 96, "intermediate_size": 160}, {}),
    "8 bits, by activation order": ("llama", {}, {"bits": 8, "act_order": True}),
}


@pytest.mark.parametrize("target", ["cuda", "nvidia-h100"])
@pytest.mark.parametrize("case", TINY)
def test_nothing_is_spilled_in_a_bundle(case: str, target: str, tmp_path: Path) -> None:
    model_type, changes, options = TINY[case]
    model = tiny.make_model(model_type, **{"intermediate_size": 128, **changes})
    made = tiny.compile_quantized(model, tmp_path, target=target, kv_cache="auto", **options)
    kernels = read_kernel_report(made.bundle, read_manifest(made.bundle))
    assert_nothing_is_spilled(kernels, target)
