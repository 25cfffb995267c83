"""A server process on a bundle that really runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from awq_tvm.compile.driver import compile_model
from tests.prompt.tokenizers_for_tests import byte_level
from tests.support import tiny_decoder as tiny

ROOT = Path(__file__).parents[2]
MODEL = "tiny"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
)


@dataclass(frozen=True)
class Server:
    """Where a server listens, and its process."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def running(bundle: Path, *arguments: object) -> Iterator[Server]:
    """A server as a user starts it; it must end well."""
    command = [sys.executable, "-m", "awq_tvm", "serve", str(bundle), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--model-name", MODEL, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(f"the server ended: {process.communicate()[1]}")
        try:
            yield Server(json.loads(line)["url"], process)
        finally:
            process.send_signal(signal.SIGTERM)
            _, talk = process.communicate(timeout=60)
    assert process.returncode == 143, talk
    assert "Traceback" not in talk


def eventually(found: object, seconds: float = 30) -> None:
    """Wait until a callable answers true."""
    deadline = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a tokenizer of text and a chat template."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = byte_level()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    model = tiny.make_model("llama", vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.token_id("</s>"))
    checkpoint = tiny.save_quantized(
        model,
        folder / "checkpoint",
        side_files={
            "tokenizer.json": tokenizer._tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(settings).encode(),
        },
    )
    compile_model(
        str(checkpoint), folder / "bundle", activations="float", vocabulary_bits=16, kv_cache="float32"
    )
    return folder / "bundle"


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with running(bundle, "--max-waiting", 64) as server:
        yield server
