"""A small bundle for this machine; every refusal test starts from one that opens."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.bundle.manifest import (
    KernelInfo,
    ManifestDraft,
    ModelInfo,
    RecipeInfo,
    TargetInfo,
    TuningInfo,
    Versions,
)
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.bundle.writer import write_bundle


def host_triple() -> str:
    """An LLVM triple of the machine the tests run on."""
    if platform.system() == "Darwin":
        return f"{platform.machine()}-apple-darwin"
    return f"{platform.machine()}-unknown-linux-gnu"


def make_draft(**changes: object) -> ManifestDraft:
    """A manifest draft for this machine and the installed versions; arguments replace whole fields."""
    fields: dict[str, object] = {
        "versions": Versions(
            awq_tvm="0.1.0",
            tvm=importlib.metadata.version("apache-tvm"),
            tvm_ffi=importlib.metadata.version("apache-tvm-ffi"),
        ),
        "model": ModelInfo(
            name="tiny",
            architecture="LlamaForCausalLM",
            vocab_size=16,
            num_hidden_layers=1,
            hidden_size=8,
            context_length=32,
            prefill_chunk_size=8,
            max_sequences=2,
            eos_token_ids=(2,),
            bos_token_id=1,
        ),
        "recipe": RecipeInfo(
            method="awq", bits=4, group_size=8, activations="float", extra={"source": "hf:org/tiny"}
        ),
        "target": TargetInfo(name="this-cpu", kind="cpu", fingerprint="f00d", triple=host_triple()),
        "library": "model.so",
        "weights": "weights.safetensors",
        "parameters": ("a", "b"),
        "tuning": TuningInfo(kernels=(KernelInfo(name="k", count=2, source="default", reason="no record"),)),
    }
    return ManifestDraft(**{**fields, **changes})


def make_weights() -> dict[str, np.ndarray]:
    """The two tensors of the draft; the first leaves the second unaligned unless padded."""
    return {
        "a": np.arange(15, dtype=np.int8).reshape(3, 5),
        "b": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 12),
    }


def make_bundle(
    out: Path, *, tokenizer: bytes = b"{}", report: bytes | None = None, **changes: object
) -> Path:
    """Write the small bundle, with a report of kernels if one is given."""
    side = {"tokenizer.json": tokenizer, "tokenizer_config.json": b'{"eos_token": "</s>"}'}
    if report is not None:
        side["kernels.json"] = report
    draft = make_draft(**changes)
    write_bundle(out, draft, b"\x7fELF not really" * 99, make_weights().items(), side, "# tiny\n")
    return out


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that opens."""
    path = make_bundle(tmp_path / "tiny.bundle")
    open_bundle(path)
    return path
