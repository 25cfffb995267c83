"""A small bundle that verifies but holds no real library, and one that really runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle.conftest import make_bundle
from tests.prompt.tokenizers_for_tests import byte_level

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
)


def awq_tvm(
    *arguments: object, stdin: str | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "awq_tvm", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that verifies; its library is none."""
    return make_bundle(tmp_path / "tiny.bundle")


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random two-layer Llama, quantized and compiled by the verbs themselves."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        pytest.skip("quantizing needs torch and transformers")
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("real")
    paths = {name: folder / name for name in ("model", "quantized", "bundle", "text")}
    tokenizer = byte_level()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_id("<s>"),
        eos_token_id=tokenizer.token_id("</s>"),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(paths["model"])
    (paths["model"] / "tokenizer.json").write_text(tokenizer._tokenizer.to_str())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (paths["model"] / "tokenizer_config.json").write_text(json.dumps(settings))
    paths["text"].write_text("Once upon a time there was a little girl named Lily. " * 20)
    quantize = ("quantize", paths["model"], "-o", paths["quantized"], "--method", "rtn", "--group-size", "32")
    # The vocabulary stays in 16 bits, as PyTorch has it, so that the two can be compared.
    exact = ("--activations", "float", "--vocabulary-bits", "16")
    compile_ = ("compile", paths["quantized"], "-o", paths["bundle"], *exact)
    for command in (quantize, compile_):
        done = awq_tvm(*command, "--json")
        if done.returncode:
            pytest.fail(f"{command[0]} ended with {done.returncode}: {done.stderr}")
        paths[f"{command[0]}.json"] = folder / f"{command[0]}.json"
        paths[f"{command[0]}.json"].write_text(done.stdout)
    return paths
